"""Target: one op to fuzz, what cases are drawn for it, and the check of one of them."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from m40llm.errors import RequestError
from m40llm.fuzz.bench import Bench
from m40llm.fuzz.strategies import is_strategy

RESERVED = {"schedule", "device"}  # names that every case has beside its own


@dataclass(frozen=True)
class Target:
    """What is fuzzed.

    name    as `--kernel` takes it
    check   check(card, **case), or check(card, ops, **case) where there are ops: launches, and
            raises (AssertionError, EmulatorError) where the result is wrong
    draws   a Hypothesis strategy for each argument of a case
    ops     the module whose functions the check calls: a copy of it can be fuzzed instead
    source  how `load_target` finds it again: a name of ours, or FILE.py:NAME
    """

    name: str
    check: Callable[..., None]
    draws: Mapping[str, Any] = field(repr=False)
    ops: Any = None
    source: str = ""

    def run(self, card: Bench, case: Mapping[str, Any]) -> None:
        """Check one case; the guard rows of its buffers, too."""
        if self.ops is None:
            self.check(card, **case)
        else:
            self.check(card, self.ops, **case)
        card.check_guards()

    def with_ops(self, ops: Any) -> "Target":
        """The same check, of other functions of the same names."""
        return replace(self, ops=ops)


def target(*, ops: Any = None, **draws: Any) -> Callable[[Callable[..., None]], Target]:
    """Make a Target of a check: `@target(n=sizes(64), seed=seeds())`.

    Raises RequestError where the draws are not what the check takes, or are no strategies.
    """

    def make(check: Callable[..., None]) -> Target:
        taken = list(inspect.signature(check).parameters)[1 if ops is None else 2 :]
        if set(taken) != set(draws):
            raise RequestError(
                f"target {check.__name__}: draws {sorted(draws)}, but its check takes "
                f"{sorted(taken)} after the card"
            )
        if reserved := RESERVED & set(draws):
            raise RequestError(f"target {check.__name__}: {sorted(reserved)} are names of our own")
        for name, draw in draws.items():
            if not is_strategy(draw):
                raise RequestError(
                    f"target {check.__name__}: {name}: expected a strategy such as sizes(64), "
                    f"got {draw!r}"
                )
        source = f"{inspect.getsourcefile(check) or ''}:{check.__name__}"
        return Target(check.__name__, check, dict(draws), ops, source)

    return make
