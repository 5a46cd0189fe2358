"""`m40llm logits`: what the model expects next."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from m40llm.cli import memory_options as mem
from m40llm.cli import options as opt
from m40llm.cli.guard import guarded
from m40llm.cli.output import loaded, piece_of, print_json, shown_token, table
from m40llm.cli.prompt import prompt_ids, read_text

if TYPE_CHECKING:
    from m40llm.llm import LLM

Top = Annotated[int, typer.Option(min=1, metavar="N", help="How many tokens to show.")]


@guarded
def logits(
    model: opt.Model,
    prompt: opt.Prompt = None,
    file: opt.PromptFile = None,
    top: Top = 10,
    device: opt.Device = "auto",
    max_seq_len: opt.MaxSeqLen = None,
    kv_type: opt.KVType = None,
    cublas: opt.Cublas = None,
    require_sm52: opt.RequireSm52 = False,
    gpu_layers: mem.GpuLayers = None,
    as_json: opt.AsJson = False,
    debug: opt.Debug = False,
) -> None:
    """Show the tokens that the model thinks likeliest after a text, with their logits.

    \b
    Examples:
      m40llm logits smollm2 -p "The capital of France is"
      m40llm logits model.gguf -p "2 + 2 =" --top 3 --json
    """
    text = read_text(prompt, file)
    on, n_layers = (device, max_seq_len, kv_type), mem.gpu_layers(gpu_layers)
    with loaded(model, *on, cublas, require_sm52, gpu_layers=n_layers) as llm:
        ids = prompt_ids(llm.tokenizer, text)
        best = top_tokens(llm, ids, top)
        if as_json:
            head = {"model": model, "device": llm.device_name, "prompt_ids": ids}
            print_json({**head, "top": best})
            return
    rows: list[tuple[object, ...]] = [("id", "token", "logit", "logprob", "probability")]
    for token in best:
        numbers = (f"{token['logit']:9.4f}", f"{token['logprob']:9.4f}")
        share = f"{100 * token['probability']:7.3f} %"
        rows.append((token["id"], shown_token(token["piece"]), *numbers, share))
    print(table(rows, indent=0))


def top_tokens(llm: "LLM", ids: list[int], n_top: int) -> list[dict[str, Any]]:
    """The `n_top` likeliest next tokens: id, piece, logit, logprob (natural), probability."""
    import numpy as np

    row = np.asarray(llm.logits(ids)[-1], np.float64)  # [vocab_size]
    highest = row.max()
    lse = highest + np.log(np.exp(row - highest).sum())
    # A stable sort of the negated row: equal logits in the order of their ids.
    order = np.argsort(-row, kind="stable")[:n_top]
    return [
        {
            "id": int(token_id),
            "piece": piece_of(llm.tokenizer, int(token_id)),
            "logit": float(row[token_id]),
            "logprob": float(row[token_id] - lse),
            "probability": float(np.exp(row[token_id] - lse)),
        }
        for token_id in order
    ]
