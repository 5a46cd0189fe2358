"""Who proposes tokens: what `LLM.load(speculate=...)` stands for."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from m40llm import hub
from m40llm.engine.decode_step import DecodeChoice
from m40llm.engine.draft import N_TOKENS, DraftModel
from m40llm.engine.engine import Engine
from m40llm.engine.ngram import NgramLookup
from m40llm.engine.scalars import is_whole
from m40llm.engine.speculate import MAX_PROPOSALS, Proposer
from m40llm.errors import DeviceError, RequestError
from m40llm.llm.arguments import checked_name
from m40llm.llm.load import ModelFile, on_device, opened
from m40llm.progress import Progress

NGRAM: Final = "ngram"


class Speculation:
    """A proposer that is known to fit a model; `of` makes it, once the model is on its device."""

    def __init__(self, draft: ModelFile | None, n_tokens: int | None) -> None:
        self._draft, self._n_tokens = draft, n_tokens

    def of(self, engine: Engine, progress: Progress | None) -> Proposer:
        """A draft model goes to the model's own device, its context as long if it has that and it
        fits."""
        if self._draft is None:
            return NgramLookup() if self._n_tokens is None else NgramLookup(self._n_tokens)
        ops, at_most = engine.model.ops, engine.max_seq_len
        try:
            draft, _ = on_device(self._draft, ops, None, progress, at_most=at_most)
        except DeviceError as error:
            too = "leave room for it: a smaller max_seq_len (in place of fit) or fewer gpu_layers"
            raise DeviceError(f"speculate: beside the model, {error}; {too}") from None
        return DraftModel(draft, N_TOKENS if self._n_tokens is None else self._n_tokens)


@contextmanager
def speculation(
    wanted: str | Path | None,
    n_tokens: int | None,
    decode: DecodeChoice | None,
    target: ModelFile,
    progress: Progress | None,
) -> Iterator[Speculation | None]:
    """None where none is wanted. RequestError before any weights are read where it cannot be."""
    _check(wanted, n_tokens, decode)
    if wanted is None:
        yield None
    elif wanted == NGRAM:
        yield Speculation(None, n_tokens)
    else:
        with opened(hub.resolve(checked_name(wanted), progress=progress)) as draft:
            _check_vocabulary(target, draft)
            yield Speculation(draft, n_tokens)


def _check(wanted: Any, n_tokens: Any, decode: DecodeChoice | None) -> None:
    if wanted is None:
        if n_tokens is not None:
            raise RequestError("speculate_tokens: expected speculate beside it")
        return
    if not isinstance(wanted, str | Path):
        kind = type(wanted).__name__
        raise RequestError(f"speculate: expected 'ngram' or a model file, got {kind}")
    if decode not in (None, "auto", "host"):
        raise RequestError(f"decode: expected 'host' or 'auto' beside speculate, got {decode!r}")
    if n_tokens is None:
        return
    if not is_whole(n_tokens) or not 1 <= n_tokens <= MAX_PROPOSALS:
        raise RequestError(f"speculate_tokens: expected 1 to {MAX_PROPOSALS}, got {n_tokens!r}")


def _check_vocabulary(target: ModelFile, draft: ModelFile) -> None:
    """Token ids must mean the same to both."""
    ours, theirs = target.tokenizer, draft.tokenizer
    sizes = target.hp.vocab_size, draft.hp.vocab_size
    if sizes[0] != sizes[1] or ours.vocab_size != theirs.vocab_size:
        why = f"it has {sizes[1]} tokens, the model has {sizes[0]}"
    else:
        pairs = ((ours.token_text(i), theirs.token_text(i)) for i in range(ours.vocab_size))
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if at is None:
            return
        why = f"its token {at} is {theirs.token_text(at)!r}, the model's {ours.token_text(at)!r}"
    raise RequestError(f"speculate: expected a model of the same vocabulary; {why}")
