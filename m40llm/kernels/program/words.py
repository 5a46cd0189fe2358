"""An instruction of the decode program as the kernel reads it: int64[N_WORDS].

Addresses are those of device memory, 0 where there is none. A word that an operation does not use
is 0.
"""

from typing import Final

# Where a word stands.
(
    OP,  # EMBED, ATTEND, CHOOSE, or PRODUCT + the place of the matrix's type in Form.types
    WAITS,  # 1: a grid barrier before it, since it reads what other blocks wrote
    KIND,  # of a product: STORE, ADD, SWIGLU, APPEND, LOGITS
    X,  # address of float32[n_seqs, N_COLS]
    NORM,  # address of float32[N_COLS], the weights of an RMSNorm of x; 0 for none
    OUT,  # address of float32[n_seqs, OUT_COLS]
    OUT_COLS,
    N_ROWS,  # of the matrix
    N_COLS,
    STAGE_COLS,  # columns of x in shared memory at a time, a multiple of 1,024
    QUANTS,  # address of uint32[N_ROWS, QUANT_WORDS]; see planes.py
    QUANT_WORDS,
    HIGHS,  # address of uint32[N_ROWS, HIGH_WORDS]
    HIGH_WORDS,
    SCALES,  # address of uint16 or uint32[N_ROWS, SCALE_WORDS]
    SCALE_WORDS,
    BIAS,  # address of float32[N_ROWS]
    FIRST_ROW,  # of APPEND: which row of Q, K and V stacked is the matrix's first
    K_CACHE,  # address of one layer's float16[n_seqs, n_kv_heads, max_seq_len, head_dim]
    V_CACHE,
) = range(20)
N_WORDS: Final = 20

# Operations.
EMBED, ATTEND, CHOOSE, PRODUCT = range(4)

# What becomes of a product's results.
STORE, ADD, SWIGLU, APPEND, LOGITS = range(5)
