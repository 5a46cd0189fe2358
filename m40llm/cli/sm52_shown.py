"""What `m40llm sm52` prints for people: projections, or measurements beside them."""

from typing import Any

from m40llm.cli.output import human_bytes, table

_RATES = ("model", "step", "behind", "by", "tokens/s", "ms", "projected, ms", "inside", "ratio")
_LAUNCHES = (
    *("model", "step", "behind", "times", "kernel", "operand", "us", "projected, us", "inside"),
    *("ratio", "bound"),
)
_SUMMARY = ("step", "kernel", "kinds", "inside", "ratio: median", "least", "most")


def projection_text(document: dict[str, Any]) -> str:
    """What is projected of a model: rates, then each kind of launch."""
    parts = [f"{document['card']}, {document['what']}"]
    parts.append(f"what fits: {document['plan']}{_lacks(document)}")
    for name in ("decode", "prefill"):
        if found := document[name]:
            parts.append(_rate(name, found))
            if name == "decode" and document["fits"] and document["has_persistent"]:
                parts.append(
                    f"  of these {_range(found['gap_ms'])} ms are gaps between launches, which the "
                    "persistent form does not have; its barriers are not projected"
                )
            parts.append(_kernels([k for k in document["kernels"] if k["step"] == name]))
    return "\n".join(parts)


def _lacks(document: dict[str, Any]) -> str:
    """What is not projected because it is not on the card."""
    if document["fits"]:
        return ""
    if n := document["n_card_layers"]:
        return (
            f": {n} of {document['n_layers']} layers on the card, whose times these are; what the "
            "CPU takes for the others is not projected"
        )
    return ": no layers, beside a useful context, so no times"


def _rate(name: str, step: dict[str, Any]) -> str:
    time = _range(step["ms"])
    rate = f"{_range(step['tokens_per_s'])} tokens/s, " if step["tokens_per_s"] else ""
    told = {
        "decode": f"decode behind {step['n_context']} tokens: {rate}{time} ms each",
        "prefill": f"prefill of {step['n_tokens']} tokens: {rate}"
        + (f"the first token after {time} ms" if rate else f"{time} ms"),
    }[name]
    launches = f"{step['n_launches']} launches, {human_bytes(step['n_bytes'])}"
    return f"{told}; {launches}, mostly bound by {step['bound']}"


def _kernels(kernels: list[dict[str, Any]]) -> str:
    head = ("us each", "times", "kernel", "operand", "bound", "registers", "spilled", "shared")
    return table(
        [(*head, "warps an SM", "loop", "FFMA", "sectors", "wavefronts"), *map(_cells, kernels)]
    )


def _cells(kernel: dict[str, Any]) -> tuple[str, ...]:
    k = kernel
    return (
        *(_range(k["us"]), str(k["count"]), k["kernel"], k["operand"], k["bound"]),
        *(str(k["registers"]), str(k["spill_bytes"]), human_bytes(k["shared_bytes"])),
        f"{k['n_warps']} ({k['occupancy_limit']})",
        "-" if k["loop_instructions"] is None else str(k["loop_instructions"]),
        "-" if k["ffma_share"] is None else f"{k['ffma_share']:.0%}",
        *("-" if k[key] is None else f"{k[key]:.1f}" for key in ("sectors", "wavefronts")),
    )


def _range(pair: list[float]) -> str:
    return " to ".join(map(_number, pair))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def comparison_text(document: dict[str, Any]) -> str:
    """Measurements beside projections: ceilings, rates, each kind of launch, and what of it all."""
    d, on = document, document["measured_on"]
    lacks = "" if d["is_complete"] else "; the report was broken off"
    ecc, driver = on["ecc"], on["driver"] or "unknown"
    parts = [
        f"{on['name']}, {d['what']}{lacks}",
        f"code for {on['code_for']}, ECC {ecc}, driver {driver}; clock: {d['clock']}",
        _ceilings(d["ceilings"]),
    ]
    parts.append(table([_RATES, *map(_rate_cells, d["rates"])]))
    parts.append(table([_LAUNCHES, *map(_launch_cells, d["kernels"])]))
    if d["summary"]:
        parts.append(table([_SUMMARY, *map(_summary_cells, d["summary"])]))
    parts += [f"left out: {row['what']}: {row['why']}" for row in d["skipped"]]
    parts += [f"failed: {row['what']}: {row['why']}" for row in d["failed"]]
    return "\n".join(parts)


def _ceilings(ceilings: dict[str, Any]) -> str:
    units = {"read_gb_per_s": "GB/s read", "fp32_tflop_per_s": "TFLOP/s of FP32"}
    told = []
    for key, unit in units.items():
        measured, projected = ceilings[key]["measured"], ceilings[key]["projected"]
        beside = f" ({_range(projected)} by data sheet and model)" if projected else ""
        told.append(f"{'-' if measured is None else _number(measured)} {unit}{beside}")
    return ", ".join(told)


def _rate_cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        *(f"{row['shape']} {row['type']}", row["step"], str(row["n_context"]), row["by"]),
        *(_number(row["tokens_per_s"]), _number(row["ms"]), *_verdict(row)),
    )


def _launch_cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        *(f"{row['shape']} {row['type']}", row["step"], str(row["n_context"]), str(row["count"])),
        *(row["kernel"], row["operand"], _number(row["us"]), *_verdict(row), row["bound"] or "-"),
    )


def _summary_cells(row: dict[str, Any]) -> tuple[str, ...]:
    ratios = (f"{row[f'{name}_ratio']:.2f}" for name in ("median", "least", "most"))
    return (row["step"], row["kernel"], str(row["n_kinds"]), str(row["n_inside"]), *ratios)


def _verdict(row: dict[str, Any]) -> tuple[str, str, str]:
    """(projected, inside, ratio); a dash where nothing is projected."""
    if row["projected"] is None:
        return "-", "-", "-"
    return _range(row["projected"]), "yes" if row["is_inside"] else "no", f"{row['ratio']:.2f}"
