"""Variants of the code beside one another: tokens a second of decode, all timed in one run.

    python benchmarks/decode_variants.py before=/tmp/before here=. [--shape 8b]
        [--type MXFP4,Q4_K_M] [--batch 1] [--out FILE]

LABEL=FOLDER names a tree of m40llm: `git archive REV m40llm | tar -x -C /tmp/before` makes one; a
variable of the environment that both read makes variants of one tree: LABEL=FOLDER,NAME=VALUE.
A row is a process of its own. All compile, draw their weights and verify at the same time, on as
many cores as there are; then each has the card to itself in turn, and times. So ten rows take
what one takes, and 4 s each (H100). The card must hold all of their weights.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from rows import hand_over

from m40llm.bench.shapes import TYPES

WORK: Final = "--work"  # a row's process
READY, GO = "ready", "go"  # what it says, and what it is told
N_REPEATS: Final = 9
MARGIN: Final = 8  # positions beyond the last token, as `m40llm bench decode` has them


@dataclass(frozen=True)
class Variant:
    """A tree of m40llm, and the variables of the environment that make it this variant."""

    label: str
    tree: Path
    variables: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, text: str) -> "Variant":
        """Of LABEL=FOLDER[,NAME=VALUE ...]; ArgumentTypeError for what is none."""
        pairs = [pair.partition("=") for pair in text.split(",")]
        (label, _, tree), *others = pairs
        if not all(name and value for name, _, value in pairs):
            raise argparse.ArgumentTypeError(f"expected LABEL=FOLDER[,NAME=VALUE], got {text!r}")
        if not (Path(tree) / "m40llm").is_dir():
            raise argparse.ArgumentTypeError(f"no m40llm in {tree!r}")
        return cls(label, Path(tree).resolve(), {name: value for name, _, value in others})

    def start(self, arguments: Sequence[str]) -> "subprocess.Popen[str]":
        """This script with these arguments."""
        path = os.pathsep.join([str(self.tree), os.environ.get("PYTHONPATH", "")])
        return subprocess.Popen(
            [sys.executable, __file__, *arguments],
            env={**os.environ, **self.variables, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )


def kinds_of(text: str) -> list[str]:
    """Of TYPE,TYPE; ArgumentTypeError for one that is none."""
    kinds = text.split(",")
    if unknown := sorted(set(kinds) - set(TYPES)):
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(TYPES)}, got {unknown[0]}")
    return kinds


def in_turn(processes: Sequence["subprocess.Popen[str]"]) -> Iterator[str]:
    """What each says when it is told to go: once all are ready, or have ended, and the one
    before is done. None is left running."""
    try:
        ready = [_line_of(process) == READY for process in processes]
        for process, is_ready in zip(processes, ready, strict=True):
            if is_ready and process.stdin:
                with contextlib.suppress(BrokenPipeError):  # it has ended since
                    process.stdin.write(GO + "\n")
                    process.stdin.flush()
            yield _line_of(process) if is_ready else ""
            process.wait()
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _line_of(process: "subprocess.Popen[str]") -> str:
    return process.stdout.readline().strip() if process.stdout else ""


def work(label: str, shape: str, kind: str, batch: str, tokens: str, device: str) -> None:
    """A row's process. Its imports are the variant's."""
    from environment import environment

    from m40llm.bench.decode import likely_form, time_decode
    from m40llm.bench.reading import read_bytes_per_s
    from m40llm.bench.shapes import shape_of
    from m40llm.bench.synthetic import synthetic_model
    from m40llm.device import open_device

    ops: Any = open_device(device)[0]
    n_seqs, n_tokens = int(batch), int(tokens)
    sizes = {"n_seqs": n_seqs, "max_seq_len": n_tokens + MARGIN}
    model = synthetic_model(ops, shape_of(shape), kind, **sizes)
    what = model, (shape, kind), likely_form(model), 0, n_tokens
    time_decode(*what, None, n_repeats=1)  # verified, and all is compiled
    print(READY, flush=True)
    if sys.stdin.readline().strip() == GO:
        rate = None if device == "emulator" else read_bytes_per_s(ops.card)
        row = time_decode(*what, rate, n_repeats=N_REPEATS).as_json()
        about = {"bench": "decode_variants", "variant": label}
        print(json.dumps({**about, **row, **asdict(environment(ops.card))}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("variants", nargs="+", metavar="LABEL=FOLDER", type=Variant.of)
    parser.add_argument("--shape", default="8b")
    parser.add_argument("--type", type=kinds_of, default="MXFP4", help="of weights, with commas")
    parser.add_argument("--batch", type=int, default=1, help="sequences at once")
    parser.add_argument("--tokens", type=int, default=128, help="that are timed")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="a file to append to")
    a = parser.parse_args()
    rows = [(variant, kind) for kind in a.type for variant in a.variants]
    of_all = str(a.batch), str(a.tokens), a.device
    begin, n_failed = time.perf_counter(), 0
    started = [one.start([WORK, one.label, a.shape, kind, *of_all]) for one, kind in rows]
    print(f"{len(rows)} rows are made ready", file=sys.stderr, flush=True)
    for (variant, kind), line in zip(rows, in_turn(started), strict=True):
        if line:
            hand_over(json.loads(line), a.out)
        else:
            n_failed += 1
            print(f"{variant.label} {kind}: failed, see above", file=sys.stderr)
    print(f"{time.perf_counter() - begin:.0f} s", file=sys.stderr)
    sys.exit(1 if n_failed else 0)


if __name__ == "__main__":
    if sys.argv[1:2] == [WORK]:
        work(*sys.argv[2:])
    else:
        main()
