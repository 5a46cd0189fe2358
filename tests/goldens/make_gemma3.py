"""Makes gemma3.json: what HF transformers computes from the same GGUF file, in FP32.

    pip install torch transformers gguf sentencepiece
    PYTHONPATH=. python tests/goldens/make_gemma3.py gemma-3-270m-q4_k_m.gguf > gemma3.json

Run by hand, its result stored. The tokenizer is what transformers makes of the file; the weights
come through make_architectures.py, by the gguf package.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_architectures import Reading
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "1, 2, 3, 4,",
    "Il était une fois",
    "东京是",
]
TEXTS = [  # user-defined tokens, runs of spaces and lines, what has no token
    "<table>\n<tr><td>x</td></tr>\n</table> <s>no</s>",
    "a\n\n\n\n\nb      c\t\t\td",
    "Über 1234567.89 😀🏳️‍🌈 東京は",
    "a▁b [multimodal]  leading",
]
N_GREEDY = 24
TEXT = (Path(__file__).parent / "text.txt").read_text(encoding="utf-8")


@torch.no_grad()
def greedy(model: Any, ids: list[int]) -> dict[str, Any]:
    out, gaps = [], []
    for _ in range(N_GREEDY):
        best = model(torch.tensor([ids + out])).logits[0, -1].topk(2)
        out.append(int(best.indices[0]))
        gaps.append(round(float(best.values[0] - best.values[1]), 5))
    return {"prompt_ids": ids, "ids": out, "gaps": gaps}


@torch.no_grad()
def main(path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    reading = Reading(path)
    reading.tensors = {name: t.astype(np.float32) for name, t in reading.tensors.items()}
    model = AutoModelForCausalLM.from_config(reading.config(), dtype=torch.float32).eval()
    model.load_state_dict(reading.state(), strict=False)
    model.tie_weights()

    def ids_of(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    bos = tokenizer.bos_token_id
    ids = [bos, *ids_of(TEXT)][:1001]
    logits = model(torch.tensor([ids])).logits[0].double()
    nll = torch.logsumexp(logits[:-1], -1) - logits[range(len(ids) - 1), ids[1:]]
    document = {
        "greedy": [{"prompt": p, **greedy(model, [bos, *ids_of(p)])} for p in PROMPTS],
        "texts": [{"text": text, "ids": ids_of(text)} for text in TEXTS],
        "text": {"ids": ids, "nll": [round(value, 6) for value in nll.tolist()]},
    }
    json.dump(document, sys.stdout, ensure_ascii=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
