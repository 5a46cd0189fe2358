"""`m40llm quantize`: write a model file again, its matrices in other types, or in parts."""

import re
from pathlib import Path
from typing import Annotated

import typer

from m40llm.cli import options as opt
from m40llm.cli.guard import guarded
from m40llm.cli.output import human_bytes, print_json, progress_bar, status

Out = Annotated[str, typer.Argument(metavar="OUT", help="The file to write.")]
Type = Annotated[
    str,
    typer.Option(
        "--type",
        metavar="T",
        help="F32, F16, BF16, Q8_0, Q6_K, Q5_K, Q5_1, Q5_0, Q4_K, Q4_1, Q4_0, MXFP4, TQ2_0, TQ1_0; "
        "mixtures Q5_K_M, Q5_K_S, Q4_K_M, Q4_K_S; COPY.",
    ),
]
PartSize = Annotated[
    str | None,
    typer.Option(
        "--split-max-size",
        metavar="SIZE",
        help="Write parts with so much of tensors each, 500M or 4G, say: OUT-00001-of-00003.gguf.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace OUT if it is there.")]


@guarded
def quantize(
    model: opt.Model,
    out: Out,
    type: Type,
    split_max_size: PartSize = None,
    force: Force = False,
    as_json: opt.AsJson = False,
    debug: opt.Debug = False,
) -> None:
    """Write a model file again with its matrices in another type.

    All matrices get the type T; vectors stay as they are. Q4_K_M and its like are llama.cpp's
    mixtures: some matrices get more bits. Rounding is that of llama.cpp's reference code, in Q6_K,
    Q5_K and Q4_K with a little less error. Start from an F32, F16 or BF16 file: of one that is
    quantised already, the error stays and the new one comes on top. The parts of a split model
    become one file, or parts of another size; COPY does only that.

    \b
    Examples:
      m40llm quantize model-f16.gguf model-q8_0.gguf --type Q8_0
      m40llm quantize model-f16.gguf model-q4_k_m.gguf --type Q4_K_M
      m40llm quantize model-00001-of-00003.gguf whole.gguf --type COPY
      m40llm quantize whole.gguf model.gguf --type COPY --split-max-size 4G
    """
    from m40llm import hub
    from m40llm.gguf import open_gguf
    from m40llm.gguf.quantize import quantize_file
    from m40llm.gguf.recipes import recipe_of

    recipe, part_bytes = recipe_of(type), _n_bytes(split_max_size)
    with progress_bar() as progress, open_gguf(hub.resolve(model, progress=progress)) as file:
        had = sorted({t.type.name for t in file.tensors.values() if len(t.shape) >= 2})
        if recipe.base and any(name not in ("F32", "F16", "BF16", recipe.name) for name in had):
            status(f"note: quantised already ({', '.join(had)}); that error stays")
        written = quantize_file(
            file, Path(out), recipe, progress, part_bytes=part_bytes, replace=force
        )
    if written.fallbacks:
        n_kept, first = len(written.fallbacks), written.fallbacks[0]
        status(
            f"note: {n_kept} matrices ({first}, ...) are of other types than {recipe.name} asks "
            "for: their rows are no whole number of its blocks"
        )
    paths = [str(path) for path in written.paths]
    if as_json:
        print_json(
            {
                "path": paths[0],
                "paths": paths,
                "type": recipe.name,
                "n_bytes_before": written.n_bytes_before,
                "n_bytes_after": written.n_bytes_after,
                "tensors": written.types,
                "fallbacks": written.fallbacks,
                "relative_error": written.relative_error,
            }
        )
        return
    where = paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    sizes = f"{human_bytes(written.n_bytes_before)} -> {human_bytes(written.n_bytes_after)}"
    print(f"{where}: {recipe.name}, {sizes}; relative error {written.relative_error:.3g}")


def _n_bytes(size: str | None) -> int:
    """Of 500M or 4G; 0 for None."""
    if size is None:
        return 0
    match = re.fullmatch(r"([1-9]\d{0,8})([MG])", size.upper())
    if match is None:
        raise typer.BadParameter(
            f"expected whole megabytes or gigabytes, 500M or 4G, say, got {size!r}",
            param_hint="--split-max-size",
        )
    return int(match[1]) * {"M": 10**6, "G": 10**9}[match[2]]
