"""`m40llm quantize`: write a model file again, its matrices in another type."""

from pathlib import Path
from typing import Annotated

import typer

from m40llm.cli import options as opt
from m40llm.cli.guard import guarded
from m40llm.cli.output import human_bytes, print_json, progress_bar, status
from m40llm.errors import RequestError

Out = Annotated[str, typer.Argument(metavar="OUT", help="The file to write.")]
Type = Annotated[
    str,
    typer.Option(
        "--type",
        metavar="T",
        help="F32, F16, BF16, Q8_0, Q6_K, Q5_K, Q5_1, Q5_0, Q4_K, Q4_1, Q4_0, MXFP4, TQ2_0, TQ1_0.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace OUT if it is there.")]


@guarded
def quantize(
    model: opt.Model,
    out: Out,
    type: Type,
    force: Force = False,
    as_json: opt.AsJson = False,
    debug: opt.Debug = False,
) -> None:
    """Write a model file again with its matrices in another type.

    All matrices get the type T; vectors stay as they are. Rounding is that of llama.cpp's
    reference code, in Q6_K, Q5_K and Q4_K with a little less error. Start from an F32, F16 or
    BF16 file: of one that is quantised already, the error stays and the new one comes on top.
    The parts of a split model become one file.

    \b
    Examples:
      m40llm quantize model-f16.gguf model-q8_0.gguf --type Q8_0
      m40llm quantize model-f16.gguf model-q4_k.gguf --type Q4_K
      m40llm quantize model-00001-of-00003.gguf whole.gguf --type BF16
    """
    from m40llm import hub
    from m40llm.gguf import open_gguf
    from m40llm.gguf.quantize import quantize_file, quantized_type

    target, path = quantized_type(type), Path(out)
    if path.exists() and not force:
        raise RequestError(f"{path} is there already; --force replaces it")
    with progress_bar() as progress, open_gguf(hub.resolve(model, progress=progress)) as file:
        had = sorted({t.type.name for t in file.tensors.values() if len(t.shape) >= 2})
        if any(name not in ("F32", "F16", "BF16", target.name) for name in had):
            status(f"note: quantised already ({', '.join(had)}); that error stays")
        written = quantize_file(file, path, target, progress)
    if written.fallbacks:
        n_kept, first = len(written.fallbacks), written.fallbacks[0]
        status(
            f"note: {n_kept} matrices ({first}, ...) are not {target.name}: "
            "their rows are no whole number of its blocks"
        )
    if as_json:
        print_json(
            {
                "path": str(path),
                "type": target.name,
                "n_bytes_before": written.n_bytes_before,
                "n_bytes_after": written.n_bytes_after,
                "tensors": written.types,
                "fallbacks": written.fallbacks,
                "relative_error": written.relative_error,
            }
        )
        return
    sizes = f"{human_bytes(written.n_bytes_before)} -> {human_bytes(written.n_bytes_after)}"
    print(f"{path}: {target.name}, {sizes}; relative error {written.relative_error:.3g}")
