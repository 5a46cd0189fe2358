"""Makes real_sites.json: what HF transformers computes on its way through real models, in FP64.

    pip install torch transformers gguf
    PYTHONPATH=. python tests/goldens/make_real_sites.py smollm2=FILE gemma3=FILE > \
        tests/goldens/real_sites.json

Beside a row's values how far rounding to FP32 may take any of them (m40llm/testing/watch.py): of
models of this size that takes minutes, so that it is stored, too. Run by hand.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from make_architectures import N_POSITIONS, Reading, compute_in_fp64
from make_sites import POSITIONS, Seen, kept
from transformers import AutoModelForCausalLM

from m40llm.testing.models import build
from m40llm.testing.noisy_ops import NoisyOps
from m40llm.testing.reference_ops import ReferenceOps
from m40llm.testing.watch import spread, watched

LAYERS = ("0", "5", "11", "17")  # one of Gemma's global ones, and the last, among them


@torch.no_grad()
def golden(path: Path, ids: list[int]) -> dict[str, Any]:
    reading = Reading(path)
    model = AutoModelForCausalLM.from_config(reading.config(), dtype=torch.float64).eval()
    missing, unexpected = model.load_state_dict(reading.state(), strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"lm_head.weight"}, missing
    model.tie_weights()
    compute_in_fp64()
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    seen = Seen(model, reading)
    out = model(torch.tensor([ids]), output_attentions=True)
    sites = seen.finished(out.logits[0], out.attentions)
    print(path.name, "transformers: done", file=sys.stderr)
    exact = watched(build(path, ReferenceOps()), ids)
    bounds = spread(lambda seed: build(path, NoisyOps(seed)), ids, exact)
    return {
        "ids": ids,
        "sites": {
            site: {
                "values": [kept(values[pos]) for pos in POSITIONS],
                "bounds": [float(f"{bounds[site][pos]:.3g}") for pos in POSITIONS],
            }
            for site, values in sorted(sites.items())
            if not site.startswith("blk.") or site.split(".")[1] in LAYERS
        },
    }


def main(files: dict[str, Path]) -> None:
    folder = Path(__file__).parent
    found = {}
    for name, path in files.items():
        known = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        found[name] = golden(path, known["text"]["ids"][:N_POSITIONS])
    json.dump({"positions": list(POSITIONS), "models": found}, sys.stdout)


if __name__ == "__main__":
    main({name: Path(path) for name, _, path in (arg.partition("=") for arg in sys.argv[1:])})
