"""Makes smollm2.json: what HF transformers computes from the same GGUF file, in FP32.

    pip install torch transformers gguf accelerate
    python tests/goldens/make_smollm2.py SmolLM2-135M-Instruct.Q4_1.gguf > smollm2.json

Run by hand, its result stored: torch is no test dependency. transformers dequantises the file with
the gguf package and computes in FP32, an implementation that shares no code with ours.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "1, 2, 3, 4,",
    "Il était une fois",
    "东京是",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
]
CONVERSATIONS = [
    [{"role": "user", "content": "Hi!"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is it blue?"}],
    [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4."},
        {"role": "user", "content": "And 3 + 3?"},
    ],
]
N_GREEDY = 32
TEXT = (Path(__file__).parent / "text.txt").read_text(encoding="utf-8")


@torch.no_grad()
def greedy(model: Any, ids: list[int]) -> tuple[list[int], list[float]]:
    """The greedy continuation, and at each token how far the best logit is above the second."""
    out, gaps = [], []
    for _ in range(N_GREEDY):
        logits = model(torch.tensor([ids + out])).logits[0, -1]
        best = logits.topk(2)
        out.append(int(best.indices[0]))
        gaps.append(float(best.values[0] - best.values[1]))
    return out, gaps


@torch.no_grad()
def text_figures(model: Any, ids: list[int]) -> dict[str, Any]:
    """Negative log-likelihood of each token after the first, and ten best logits here and there."""
    logits = model(torch.tensor([ids])).logits[0].double()
    nll = torch.logsumexp(logits[:-1], -1) - logits[range(len(ids) - 1), ids[1:]]
    top = {at: logits[at].topk(10) for at in range(0, len(ids), len(ids) // 8)}
    return {
        "ids": ids,
        "nll": [round(value, 6) for value in nll.tolist()],
        "top10": {
            at: [[int(i), round(float(v), 5)] for v, i in zip(*best, strict=True)]
            for at, best in top.items()
        },
    }


def main(path: Path) -> None:
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
    rows = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, add_special_tokens=False).input_ids
        out, gaps = greedy(model, ids)
        rows.append({"prompt": prompt, "prompt_ids": ids, "ids": out, "gaps": gaps})
    document = {
        "greedy": rows,
        "text": text_figures(model, tokenizer(TEXT, add_special_tokens=False).input_ids[:1001]),
        "chat": [
            {
                "messages": m,
                "prompt": tokenizer.apply_chat_template(
                    m, tokenize=False, add_generation_prompt=True
                ),
            }
            for m in CONVERSATIONS
        ],
    }
    json.dump(document, sys.stdout, indent=None, ensure_ascii=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
