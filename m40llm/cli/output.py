"""What verbs print: results on stdout, everything else on stderr, one document with --json."""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from m40llm.progress import BytesDone, Progress

if TYPE_CHECKING:
    from m40llm import research
    from m40llm.llm import LLM, Timings
    from m40llm.text import Tokenizer


BAR_WIDTH: Final = 30
# Of a terminal (ECMA-48, DEC VT100): the rest of the line, the cursor, wrapping at the line's end.
ERASE, SAVE, RESTORE, NO_WRAP, WRAP = "\x1b[K", "\x1b7", "\x1b8", "\x1b[?7l", "\x1b[?7h"


def status(line: str) -> None:
    """Print a line that is not the result: to stderr."""
    print(line, file=sys.stderr, flush=True)


def print_json(document: dict[str, Any]) -> None:
    """Print the one JSON document of a verb, in ASCII: safe whatever stdout's encoding is."""
    print(json.dumps(document), flush=True)


def write_text(text: str, *, to_stderr: bool = False) -> None:
    """Print text as it comes, at once."""
    stream = sys.stderr if to_stderr else sys.stdout
    stream.write(text)
    stream.flush()


def table(rows: Iterable[Sequence[object]], *, indent: int = 2) -> str:
    """Rows in aligned columns; numbers to the right, the rest to the left.

    Args:
        rows: cells, shown by `str`; every row has the same number of them.
        indent: spaces before each row.
    """
    cells = [list(row) for row in rows]
    widths = [max(len(str(cell)) for cell in column) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        shown = [
            f"{cell:>{width}}" if isinstance(cell, int | float) else f"{cell!s:<{width}}"
            for cell, width in zip(row, widths, strict=True)
        ]
        lines.append(" " * indent + "  ".join(shown).rstrip())
    return "\n".join(lines)


def human_bytes(n_bytes: float) -> str:
    """A size for people: 98.4 MB, 1.2 GB (powers of 1,000)."""
    for unit in ("bytes", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.1f} GB"


def bytes_done(fraction: float) -> str:
    """ " 12.3 / 98.4 MB" behind a stage that counts bytes, nothing behind another."""
    if not isinstance(fraction, BytesDone):
        return ""
    return f" {fraction.n_done / 1e6:.1f} / {fraction.n_total / 1e6:.1f} MB"


def piece_of(tokenizer: "Tokenizer", token_id: int) -> str:
    """The text that a token stands for; bytes that are no UTF-8 by themselves become U+FFFD."""
    return tokenizer.token_bytes(token_id).decode("utf-8", errors="replace")


def shown_token(text: str) -> str:
    """A token for one cell of a table: quoted, with its spaces and control characters visible."""
    return json.dumps(text, ensure_ascii=False)


def speed_line(timings: "Timings", stop_reason: str) -> str:
    """The closing line of an answer: tokens, seconds, tokens a second, and why it ended."""
    n_proposed, n_accepted = timings.proposed_tokens, timings.accepted_tokens
    proposed = f"; {n_accepted} of {n_proposed} proposed tokens accepted" if n_proposed else ""
    return (
        f"{timings.generated_tokens} tokens, {timings.tokens_per_s:.1f} tokens/s "
        f"(prompt: {timings.prompt_tokens} tokens in {timings.prefill_s:.2f} s; first token after "
        f"{timings.ttft_s:.2f} s{proposed}; ended by: {stop_reason})"
    )


class _LongStages:
    """Names each stage of some work once, if it is not done within two seconds."""

    def __init__(self) -> None:
        self._stage, self._begin, self._is_named = "", 0.0, False

    def report(self, stage: str, fraction: float) -> None:
        if stage != self._stage:
            self._stage, self._begin, self._is_named = stage, time.monotonic(), False
        is_long = time.monotonic() - self._begin > 2.0
        if is_long and fraction < 1.0 and not self._is_named:
            status(f"{stage} ...")
            self._is_named = True


class _Line:
    """Progress at a terminal's cursor, in the rest of its line: also behind an unfinished answer.

    Drawn with the cursor saved and no wrapping, so that text goes on as if nothing had been there.
    """

    def __init__(self) -> None:
        self._drawn = 0.0  # when; 0.0: there is nothing to see

    def report(self, stage: str, fraction: float) -> None:
        now = time.monotonic()
        if fraction >= 1.0:
            self.erase()
        elif fraction == 0.0 or now - self._drawn > 0.1:
            self._drawn = now
            filled = "#" * int(fraction * BAR_WIDTH)
            bar = f"  [{filled:<{BAR_WIDTH}}] {fraction:4.0%}" if fraction else ""
            shown = f"  {stage}{bytes_done(fraction)}{bar}"
            write_text(f"{ERASE}{SAVE}{NO_WRAP}{shown}{WRAP}{RESTORE}", to_stderr=True)

    def erase(self) -> None:
        if self._drawn:
            write_text(ERASE, to_stderr=True)
            self._drawn = 0.0


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A line on stderr, gone when done; where stderr is no terminal, one for what takes long."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield _LongStages().report
        return
    line = _Line()
    try:
        yield line.report
    finally:
        line.erase()


@contextmanager
def loaded(
    model: str,
    device: str,
    max_seq_len: int | None,
    kv_type: str | None,
    cublas: bool | None,
    require_sm52: bool,
    decode: str | None = "host",
    **more: Any,
) -> Iterator["research.LLM"]:
    """Load `model` with a progress bar, say which device was chosen and why, close it at the end.

    `more` is what else the verb has of `LLM.load`: `speculate`, `gpu_layers`, ...

    Raises:
        M40LLMError: what `LLM.load` raises.
    """
    from m40llm.research import LLM

    with progress_bar() as progress:  # to the end: kernels are compiled in requests, too
        llm = LLM.load(
            model,
            device=device,
            max_seq_len=max_seq_len,
            kv_type=kv_type,
            progress=progress,
            cublas=cublas,
            decode=decode,
            require_sm52=require_sm52,
            **more,
        )
        with llm:
            tell_load(llm, decode, has_fit=bool(more.get("fit")))
            yield llm


def tell_load(llm: "LLM", decode: str | None, *, has_fit: bool) -> None:
    """Which device was chosen and why, and what a user may want to know of how the model lies."""
    has_choice = decode != "host" and llm.device_name != "cpu"
    form = f", decode: {llm.decode_form}" if has_choice else ""
    status(f"device: {llm.device_name} ({llm.device_reason}){form}")
    if has_fit:
        status(f"fit: {llm.plan.chosen}")
    if len(llm.plan.shares) > 1:
        status(f"note: {llm.plan.placement}")
    for share in llm.plan.shares:
        for unpacked in share.unpacked:
            status(f"note: {unpacked} (no {share.device} code reads that type as it is)")
