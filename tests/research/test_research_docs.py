"""Every block of Python in docs/research.md runs, one after the other, on the model it names."""

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "research.md").read_text(encoding="utf-8")
KINDS = (".png", ".svg")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def test_they_run(
    smollm2: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert smollm2.exists()
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    said = []
    for code in BLOCKS:
        exec(compile(code, "docs/research.md", "exec"), names)
        said.append(capsys.readouterr().out)
    shapes, _, forms, lens, shares, _, effects, *others = said
    assert shapes == "(5, 576)\n(5, 9, 5)\n"
    assert "host" in forms.splitlines()
    assert lens.splitlines()[-1].split("'")[1] == " Paris"
    assert "blk.23.attn_out    +1.79" in shares
    assert "+4.76, the logits' difference +4.76" in shares
    steps, cached, compared, _, _ = others
    assert steps.startswith("[' Paris']")
    assert cached.startswith("['")
    assert compared.count("\n") == 31
    assert names["found"].effects[:, 3] == pytest.approx(1, abs=0.05)
    assert effects.count("\n") == 5
    pictures = {f"{name}{kind}" for name in ("lens", "patching", "attention") for kind in KINDS}
    assert {path.name for path in tmp_path.iterdir()} == {"cheerful.npz", *pictures}
