"""A command line whose model is a stand-in: it says the user's words again, one token at a time."""

import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from typer.testing import CliRunner

import m40llm
from m40llm.testing import write_tiny_gguf
from m40llm.text import tokenizer_from_gguf


@dataclass
class FakeTimings:
    prompt_tokens: int = 3
    generated_tokens: int = 2
    load_s: float = 0.0
    prefill_s: float = 0.1
    decode_s: float = 0.5
    ttft_s: float = 0.1
    tokens_per_s: float = 4.0
    proposed_tokens: int = 0
    accepted_tokens: int = 0


@dataclass
class FakeCompletion:
    text: str
    ids: list[int]
    prompt_ids: list[int]
    stop_reason: str = "stop"
    logprobs: None = None
    timings: FakeTimings = field(default_factory=FakeTimings)


@dataclass
class FakeItem:
    token_id: int
    text: str
    logprob: float = -1.0


class FakeStream:
    """Yields the pieces; `on_piece` may raise or send signals in their midst."""

    def __init__(self, pieces: list[str], on_piece: Callable[[str], None]) -> None:
        self.completion: FakeCompletion | None = None
        self._items = self._run(pieces, on_piece)

    def _run(self, pieces: list[str], on_piece: Callable[[str], None]) -> Iterator[FakeItem]:
        said: list[str] = []
        for at, piece in enumerate(pieces):
            on_piece(piece)
            said.append(piece)
            self.completion = _completion(said, "cancelled")
            yield FakeItem(at, piece)
        self.completion = _completion(said, "stop")

    def __iter__(self) -> Iterator[FakeItem]:
        return self._items

    def close(self) -> None:
        self._items.close()  # type: ignore[attr-defined]


def _completion(said: list[str], stop_reason: str) -> FakeCompletion:
    return FakeCompletion("".join(said), list(range(len(said))), [1, 2, 3], stop_reason)


CHOSEN = "context of 8,192 tokens, cache in f16: 1 GB"
PLACED = "22 of 32 layers on cuda:0, 10 on cpu"


class FakeLLM:
    """The part of `LLM` that the command line uses."""

    device_name, device_reason, max_seq_len = "cpu", "no NVIDIA driver was found", 64
    on_piece: Callable[[str], None] = staticmethod(lambda piece: None)  # type: ignore[assignment]
    asked: dict[str, Any]
    scale = 1.0  # of the logits
    unpacked: ClassVar[list[str]] = []
    devices: ClassVar[list[str]] = ["cpu"]

    def __init__(self, path: Path) -> None:
        of_each = [types.SimpleNamespace(device=d, unpacked=self.unpacked) for d in self.devices]
        self.plan = types.SimpleNamespace(shares=of_each, placement=PLACED, chosen=CHOSEN)
        self.tokenizer = tokenizer_from_gguf(path)
        self.hparams = types.SimpleNamespace(vocab_size=self.tokenizer.vocab_size)

    def __enter__(self) -> "FakeLLM":
        return self

    def __exit__(self, *args: object) -> None:
        pass

    @classmethod
    def load(cls, model: str, **options: Any) -> "FakeLLM":
        from m40llm.hub import resolve

        cls.asked = options
        return cls(resolve(model))

    def load_lora(self, path: str, scale: float) -> str:
        return f"{Path(path).stem} times {scale}"

    def stream(self, prompt: str, params: Any, lora: str | None = None) -> FakeStream:
        FakeLLM.asked = {"prompt": prompt, "params": params, "lora": lora}
        return FakeStream(["a", " b", " c"], self.on_piece)

    def chat(
        self, messages: list[dict[str, str]], params: Any, stream: bool, lora: str | None = None
    ) -> FakeStream:
        FakeLLM.asked = {"lora": lora}
        return FakeStream(["you said: ", messages[-1]["content"]], self.on_piece)

    def lens(self, ids: list[int], **how: Any) -> Any:
        one = np.zeros((1, 1, 1))
        return types.SimpleNamespace(
            ids=ids, sites=["embd"], pieces=[[["a"]]], entropy=one[0], top_ids=one, top_logprobs=one
        )

    def embed(self, texts: list[str], pooling: str, **options: Any) -> np.ndarray:
        """(length, 1) of each text."""
        FakeLLM.asked = {"texts": texts, "pooling": pooling, **options}
        return np.array([[len(text), 1.0] for text in texts], np.float32)

    def logits(self, ids: list[int]) -> np.ndarray:
        """Token t is followed by t + 1, with logit 5; the others have 0."""
        rows = np.zeros((len(ids), 512), np.float32)
        rows[np.arange(len(ids)), np.array(ids) + 1] = 5 * self.scale
        return rows


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf"))


@pytest.fixture
def fake_llm(monkeypatch: pytest.MonkeyPatch) -> type[FakeLLM]:
    """Verbs that load a model get the stand-in."""
    monkeypatch.setattr("m40llm.research.LLM", FakeLLM)
    module = types.ModuleType("m40llm.llm")
    module.LLM = FakeLLM  # type: ignore[attr-defined]
    module.__path__ = [str(Path(m40llm.__file__).parent / "llm")]  # its modules are the real ones
    monkeypatch.setitem(sys.modules, "m40llm.llm", module)
    monkeypatch.setattr(FakeLLM, "on_piece", staticmethod(lambda piece: None))
    return FakeLLM


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run the command line on these arguments, with an empty cache."""
    from m40llm.cli.app import app

    monkeypatch.setenv("M40LLM_HOME", str(tmp_path / "cache"))
    return lambda *args, **kwargs: CliRunner().invoke(app, list(args), **kwargs)
