"""docs/deploy.md: its commands parse, its unit is one, its names are those of the server."""

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer.main
from prometheus_client.parser import text_string_to_metric_families

from m40llm.cli.app import app
from m40llm.server.metrics import Metrics
from m40llm.testing import write_tiny_gguf
from m40llm.testing.scripted import ScriptedService

PAGE = (Path(__file__).parents[1] / "docs" / "deploy.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"m40llm serve ([^'\n]+)", "\n".join(re.findall(r"```.*?```", PAGE, re.S)))


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line: str) -> None:
    args = shlex.split(line.replace("$((8000 + %i))", "8001"))
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    with serve.make_context("serve", args) as context:
        assert context.params["model"]


def test_the_container_s_command_parses() -> None:
    entry, rest = re.findall(r'^(?:ENTRYPOINT|CMD) \["(.*?)"\]$', blocks("dockerfile")[0], re.M)
    args = [*entry.split('", "')[2:], *rest.split('", "')]
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    with serve.make_context("serve", args) as context:
        assert (context.params["host"], context.params["model"]) == ("0.0.0.0", "smollm2")


def test_the_unit(tmp_path: Path) -> None:
    """It leaves the server the time that it gives its requests; systemd, if here, has no doubts."""
    text = blocks("ini")[0]
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(text)
    service = unit["Service"]
    (grace,) = re.findall(r"--grace (\d+)", service["ExecStart"])
    assert int(service["TimeoutStopSec"]) > int(grace)
    closed = ("MemoryDenyWriteExecute", "PrivateDevices", "ProcSubset", "ProtectClock")
    assert not set(closed) & set(service)  # the page says why
    if shutil.which("systemd-analyze"):
        file = tmp_path / "m40llm.service"
        file.write_text(re.sub(r"/(opt|usr)/\S*/bin/\S+|/usr/bin/\S+", "/bin/true", text))
        told = subprocess.run(
            ["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False
        )
        assert (told.returncode, told.stdout + told.stderr) == (0, "")


def test_metrics_that_it_names(tmp_path: Path) -> None:
    service = ScriptedService(write_tiny_gguf(tmp_path / "tiny.gguf"))
    page = Metrics(service).page().decode()  # type: ignore[arg-type]
    families = {family.name for family in text_string_to_metric_families(page)}
    named = {name.removesuffix("_total") for name in re.findall(r"\b(m40llm_\w+)", PAGE)}
    assert len(named) >= 4
    assert named <= families
