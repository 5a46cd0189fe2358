"""Makes k_quants.json: the error that llama.cpp's own quantiser leaves in each block of our rows.

    pip download --no-deps pywhispercpp && unzip pywhispercpp-*.whl    # has ggml's library
    python tests/goldens/make_k_quants.py pywhispercpp.libs/libggml-base-*.so > k_quants.json

Run by hand, its result stored: no test needs the library. It is called as `llama-quantize` calls
it where there is no importance matrix.
"""

import ctypes
import json
import sys
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

sys.path.insert(0, str(Path(__file__).parents[1] / "gguf"))
from k_quant_rows import KINDS, errors, rows

TYPES = [GGMLQuantizationType[name] for name in ("Q4_K", "Q5_K", "Q6_K")]


def main(library: str) -> None:
    ggml = ctypes.CDLL(library)
    ggml.ggml_version.restype = ctypes.c_char_p
    found: dict[str, object] = {"ggml": ggml.ggml_version().decode()}
    for type_ in TYPES:
        found[type_.name] = {
            kind: errors(dequantize(quantized(ggml, rows(kind), type_), type_), rows(kind)).tolist()
            for kind in KINDS
        }
    print(json.dumps(found, indent=1))


def quantized(ggml: ctypes.CDLL, weights: np.ndarray, type_: GGMLQuantizationType) -> np.ndarray:
    n_weights, n_bytes = GGML_QUANT_SIZES[type_]
    n_rows, n_cols = weights.shape
    out = np.empty((n_rows, n_cols // n_weights * n_bytes), np.uint8)
    counts = [ctypes.c_int64(count) for count in (0, n_rows, n_cols)]
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (weights, out)]
    ggml.ggml_quantize_chunk(int(type_), *pointers, *counts, None)
    return out


if __name__ == "__main__":
    main(sys.argv[1])
