"""Every kernel benchmark in one process, each with a time limit; a failing one stops no other.

    python benchmarks/run_all.py --out FILE.jsonl [--quick] [--device cuda|emulator] [--limit-s 240]

Exit code 1 if a case failed; the failures are listed at the end.
"""

import importlib
import sys
import time
import traceback
from pathlib import Path

from cases import Row
from harness import arguments, open_bench, report

WEIGHTS = {"gemv": 8.0, "gemm": 4.0, "attention_decode": 2.5, "attention_prefill": 2.5}
NO_KERNELS = {"generate", "prefill"}  # benchmarks that are of a whole model
FOLDER = Path(__file__).parent


def stems() -> list[str]:
    """Of all kernel benchmarks, the heaviest first."""
    found = (path.stem.removeprefix("bench_") for path in sorted(FOLDER.glob("bench_*.py")))
    return sorted(set(found) - NO_KERNELS, key=lambda stem: (-WEIGHTS.get(stem, 1.0), stem))


def limits(total_s: float) -> dict[str, float]:
    """Seconds of each benchmark: shares of the total, after which no new case begins."""
    weights = {stem: WEIGHTS.get(stem, 1.0) for stem in stems()}
    return {stem: total_s * weight / sum(weights.values()) for stem, weight in weights.items()}


def main(argv: list[str] | None = None) -> int:
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--limit-s", type=float, default=240.0, help="seconds for all together")
    args = parser.parse_args(argv)
    bench, failures = open_bench(args), []
    for stem, limit_s in limits(args.limit_s).items():
        begin = time.monotonic()
        try:
            cases = importlib.import_module(f"bench_{stem}").cases
            rows = report(bench, stem, cases, args.out, limit_s)
        except Exception as error:  # of the benchmark itself; the others go on
            traceback.print_exc()
            rows = [Row(stem, "the benchmark itself", {}, error=f"{type(error).__name__}: {error}")]
        failures += [f"{stem}: {row.case}: {row.error}" for row in rows if row.error]
        print(f"{stem}: {len(rows)} rows in {time.monotonic() - begin:.1f} s", flush=True)
    print("\n".join(["", "FAILED", *failures]) if failures else "\nall verified")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
