"""OpsDecoder: a model's own ops as a step of the device, for what no decode program knows."""

from pathlib import Path
from typing import Any

import pytest

from m40llm import LLM, SamplingParams
from m40llm.device.gpu.ops_decoder import OpsDecoder
from m40llm.testing import write_tiny_gguf

PROMPT, N_TOKENS = [5, 9, 3, 7], 10
CASES: dict[str, dict[str, Any]] = {
    "experts": {"arch": "mixtral"},
    "soft caps": {"arch": "gemma2"},
    "q8_0": {"head_dim": 32},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("device", ["emulator", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_tokens_are_the_hosts(device: str, name: str, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", context_length=32, **CASES[name])
    of: dict[str, Any] = {"kv_type": "q8_0"} if name == "q8_0" else {}
    params = SamplingParams(temperature=0, max_tokens=N_TOKENS, ignore_eos=True)
    with LLM.load(path, device=device, decode="host", **of) as llm:
        expected = llm.generate(PROMPT, params)
    for form in ("eager", "graph"):
        with LLM.load(path, device=device, decode=form, **of) as llm:
            assert isinstance(llm.transformer.decoder, OpsDecoder)
            found = llm.generate(PROMPT, params)
            assert llm.decode_form == form
        assert found.ids == expected.ids
