"""Plots of a file of results, each as PNG and SVG: roofline, matrix products, the ladder's steps.

    python benchmarks/plot.py ROWS.jsonl [--out FOLDER]

roofline    arithmetic done over what a card can do, by FLOPs a byte of the work
gemm        times cuBLAS (FP32, no TF32), by tokens, a line a matrix; F16 weights
ladder      TFLOP/s of each step of benchmarks/ladder, and of cuBLAS

Needs matplotlib (`pip install "m40llm[bench]"`).
"""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

from rows import read_rows

Row = dict[str, Any]


def figure(title: str) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit('error: no matplotlib; try: pip install "m40llm[bench]"') from None
    fig = Figure(figsize=(8, 5), layout="constrained")
    axes = fig.subplots()
    axes.set_title(title)
    axes.grid(visible=True, which="both", alpha=0.25)
    return fig, axes


def made_by(rows: list[Row]) -> str:
    first = rows[0]
    code = str(first.get("compiled_for", "the card")).replace(".", "")
    return f"{first.get('device', 'a card')}, code for {'sm_' * code.isdigit()}{code}"


def roofline(rows: list[Row]) -> Any | None:
    """None if no row has FLOPs."""
    rows = [row for row in rows if row.get("flops") and row.get("tflop_per_s")]
    if not rows:
        return None
    fig, axes = figure(f"Roofline: {made_by(rows)}")
    ceilings = {row["bound"]: row["ceiling"] for row in rows if row.get("ceiling")}
    by_bench: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_bench[row["bench"]].append(row)
    intensities = [row["flops"] / (row["bytes_read"] + row["bytes_written"]) for row in rows]
    ends = min(intensities) / 2, max(intensities) * 2
    for bench, some in sorted(by_bench.items()):
        x = [row["flops"] / (row["bytes_read"] + row["bytes_written"]) for row in some]
        axes.scatter(x, [row["tflop_per_s"] for row in some], s=18, label=bench)
    if "fma" in ceilings:
        peak = ceilings["fma"] / 1e12
        label = f"FP32 FMA, measured in the same run: {peak:.1f} TFLOP/s"
        axes.axhline(peak, color="black", lw=1, label=label)
    if "read" in ceilings:
        rate = ceilings["read"] / 1e12
        label = f"reading, measured in the same run: {rate:.2f} TB/s"
        end = min(ends[1], ceilings.get("fma", float("inf")) / ceilings["read"])
        x = ends[0], max(end, ends[0])
        axes.plot(x, [rate * at for at in x], color="black", lw=1, ls="--", label=label)
    axes.set(xscale="log", yscale="log", xlabel="FLOPs a byte", ylabel="TFLOP/s", xlim=ends)
    axes.legend()
    return fig


def gemm(rows: list[Row]) -> Any | None:
    """None if there are no products of F16 weights that were raced."""
    lines: dict[tuple[int, int], dict[int, float]] = defaultdict(dict)
    rows = [row for row in rows if row["bench"] == "gemm" and row.get("speedup")]
    for row in rows:
        shape = row["shape"]
        if shape["type"] == "F16" and shape["x"] == "float32":
            lines[shape["n_rows"], shape["n_cols"]][shape["n_tokens"]] = row["speedup"]
    lines = {matrix: line for matrix, line in lines.items() if len(line) > 1}
    if not lines:
        return None
    fig, axes = figure(f"F16 weights, FP32 arithmetic, beside cuBLAS FP32\n{made_by(rows)}")
    for (n_rows, n_cols), line in sorted(lines.items()):
        tokens = sorted(line)
        axes.plot(tokens, [line[n] for n in tokens], marker="o", ms=4, label=f"{n_rows} x {n_cols}")
    axes.axhline(1, color="black", lw=1)
    ticks = sorted({n for line in lines.values() for n in line})
    axes.set(xscale="log", xlabel="tokens", ylabel="times as fast as cuBLAS", ylim=(0, None))
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    axes.legend(title="matrix", fontsize="small")
    return fig


def ladder(rows: list[Row]) -> Any | None:
    """None if there are no steps."""
    rows = [row for row in rows if row["bench"] == "ladder"]
    if not rows:
        return None
    size = rows[0]["shape"]["size"]
    fig, axes = figure(f"A matrix product of {size}³ in steps, F16 weights\n{made_by(rows)}")
    names = [row["shape"]["step"] for row in rows]
    bars = axes.barh(range(len(rows)), [row["tflop_per_s"] for row in rows])
    axes.bar_label(bars, fmt="%.1f", padding=3)
    if rivals := [row["flops"] / row["rival_median"] / 1e6 for row in rows if row["rival_median"]]:
        rival = sorted(rivals)[len(rivals) // 2]
        axes.axvline(rival, color="black", lw=1, label=f"cuBLAS FP32: {rival:.1f}")
        axes.legend(loc="upper right")  # where the bars are short
    axes.margins(x=0.12)
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xlabel("TFLOP/s")
    return fig


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path)
    parser.add_argument("--out", type=Path, default=Path(), help="folder; here if not given")
    args = parser.parse_args(argv)
    rows = read_rows(args.rows)
    made = {"roofline": roofline(rows), "gemm": gemm(rows), "ladder": ladder(rows)}
    if not any(made.values()):
        raise SystemExit(f"error: {args.rows}: nothing to plot")
    args.out.mkdir(parents=True, exist_ok=True)
    for name, fig in made.items():
        for kind in ("png", "svg") if fig is not None else ():
            path = args.out / f"{name}.{kind}"
            fig.savefig(path, dpi=130)
            print(path)


if __name__ == "__main__":
    main()
