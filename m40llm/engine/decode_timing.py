"""How long a token takes in each form of decode, with this model on this device: measured.

Every form answers the same short greedy request, as it would a user's. A form of the device is
timed only if its tokens and log-probabilities are those of the others, bit for bit; the host's
loop rounds elsewhere, and is what there is without a decoder.
"""

import contextlib
from collections.abc import Sequence
from typing import Final

import numpy as np

from m40llm.device.decoder import Form
from m40llm.engine.decode_step import DecodeForm
from m40llm.engine.engine import Engine
from m40llm.engine.sampling_params import SamplingParams
from m40llm.engine.step import Clock
from m40llm.progress import Progress, silent

N_CHECKED: Final = 8  # tokens that are compared, and timed at least
N_TIMED: Final = 32
RUN_S: Final = 1.0  # a slow device is timed over so many fewer tokens that a run takes no longer
N_REPEATS: Final = 3
PROMPT: Final = (0,)

Tokens = list[tuple[int, float]]
"""(token_id, logprob) of each."""


def time_forms(
    engine: Engine, forms: Sequence[Form], progress: Progress | None = None
) -> dict[DecodeForm, float] | None:
    """Median milliseconds a token of the host's loop and of those of `forms` that work.

    None where nothing can be said: the context is too short, or the host's loop fails, too. Empty
    where it did not, but the card has stopped to answer in one of the forms. The form that the
    engine had is restored.
    """
    if engine.max_seq_len < len(PROMPT) + N_CHECKED:
        return None
    tell = progress or silent
    form_before = engine.decode_form
    try:
        tell("measuring decode", 0.0)
        working = _working(engine, forms)
        return _timed(engine, working, tell) if "host" in working else None
    finally:
        engine.decode_form = form_before
        # What lies in the cache now is nobody's: a position is written before it is read.
        engine.forget()
        tell("measuring decode", 1.0)


def _working(engine: Engine, forms: Sequence[Form]) -> dict[DecodeForm, Tokens]:
    """The tokens of each form that works. Also compiles what it needs: that is not to be timed."""
    found: dict[DecodeForm, Tokens] = {}
    every: tuple[DecodeForm, ...] = ("host", *forms)
    expected: Tokens | None = None
    for form in every:
        with contextlib.suppress(Exception):  # of any kind: what fails is not chosen
            _, tokens = _run(engine, form, N_CHECKED)
            if form != "host":
                expected = expected or tokens
            if form == "host" or tokens == expected:
                found[form] = tokens
    return found


def _timed(
    engine: Engine, checked: dict[DecodeForm, Tokens], tell: Progress
) -> dict[DecodeForm, float]:
    """The forms take turns, so that a clock that rises while the card warms up serves them all.

    One whose tokens are not again those of `checked` is dropped.
    """
    n_tokens = dict.fromkeys(checked, N_CHECKED)
    samples: dict[DecodeForm, list[float]] = {form: [] for form in checked}
    for repeat in range(1 + N_REPEATS):  # the first says how many tokens the others have
        for i, form in enumerate(checked):
            with contextlib.suppress(Exception):
                seconds, tokens = _run(engine, form, n_tokens[form])
                is_right = form == "host" or tokens[:N_CHECKED] == checked[form]
                if repeat == 0:
                    n_tokens[form] = _affordable(engine, seconds)
                elif is_right:
                    samples[form].append(1e3 * seconds)
            tell("measuring decode", (repeat + (i + 1) / len(checked)) / (1 + N_REPEATS))
    return {form: float(np.median(ms)) for form, ms in samples.items() if len(ms) == N_REPEATS}


def _affordable(engine: Engine, seconds: float) -> int:
    """Tokens of a run, where one takes so long."""
    n_room = engine.max_seq_len - len(PROMPT)
    return max(N_CHECKED, min(N_TIMED, n_room, int(RUN_S / max(seconds, 1e-9))))


def _run(engine: Engine, form: DecodeForm, n_tokens: int) -> tuple[float, Tokens]:
    """(seconds a token, the tokens), but for the first, which is the host's in every form."""
    engine.decode_form = form
    params = SamplingParams(temperature=0, max_tokens=1 + n_tokens, ignore_eos=True)
    clock = Clock()
    steps = engine.generate(PROMPT, params, clock)
    next(steps)
    before_s = clock.decode_s
    tokens = [(step.token.token_id, step.token.logprob) for step in steps]
    return (clock.decode_s - before_s) / n_tokens, tokens
