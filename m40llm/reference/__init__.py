"""The oracle: every op as one obvious NumPy function in FP64, slow on purpose.

What the kernels and the cpu ops compute fast is compared with these. Each takes what its op takes
and returns a new array; float32 inputs are widened first and nothing is rounded on the way.
"""

from m40llm.reference.add_bias import add_bias
from m40llm.reference.add_rows import add_rows
from m40llm.reference.add_shares import add_shares
from m40llm.reference.append import append
from m40llm.reference.append_q8 import append_q8, dequantise_q8, quantise_q8
from m40llm.reference.argmax import argmax
from m40llm.reference.attention import attention
from m40llm.reference.cast import cast
from m40llm.reference.choose_experts import choose_experts
from m40llm.reference.dequantize_rows import dequantize_rows
from m40llm.reference.embedding import embedding
from m40llm.reference.matmul import matmul
from m40llm.reference.matmul_experts import matmul_experts
from m40llm.reference.rms_norm import rms_norm
from m40llm.reference.rope import rope
from m40llm.reference.sampling import distribution, masked, penalised
from m40llm.reference.scale import add_scaled, scale
from m40llm.reference.softcap import softcap
from m40llm.reference.softmax import softmax
from m40llm.reference.swiglu import geglu, swiglu
from m40llm.reference.top_k import top_k

__all__ = [
    "add_bias",
    "add_rows",
    "add_scaled",
    "add_shares",
    "append",
    "append_q8",
    "argmax",
    "attention",
    "cast",
    "choose_experts",
    "dequantise_q8",
    "dequantize_rows",
    "distribution",
    "embedding",
    "geglu",
    "masked",
    "matmul",
    "matmul_experts",
    "penalised",
    "quantise_q8",
    "rms_norm",
    "rope",
    "scale",
    "softcap",
    "softmax",
    "swiglu",
    "top_k",
]
