"""An instruction of the decode program as the kernel reads it: int64[N_WORDS].

All that an operation needs stands in its words: addresses of device memory (0 where there is
none), sizes, and numbers of float32 as their bits. Passed as arrays, they would fill registers all
through the kernel. A word that an operation does not use is 0.
"""

from typing import Final

# Where a word stands.
(
    # any instruction
    PC,  # which of the program's instructions it is
    AFTER_NEXT,  # the instruction after the next one, the program being a ring
    OP,  # one of those below, or PRODUCT + the place of the matrix's type in Form.types
    X,  # address of exchange words uint32[n_seqs, N_COLS, 2]; see exchange.py
    X_WRITER,  # the instruction that wrote X last
    OUT,  # address of exchange words uint32[n_seqs, OUT_COLS, 2]
    OUT_COLS,
    SEQ,  # address of int32[n_seqs]: DecodeState.seq, and so on
    ROW_POS,
    GO,
    ZERO,  # 0, which the compiler does not know
    MAX_SEQ_LEN,
    BEST,
    MASS,
    RAW,
    # a product
    KIND,  # ADD, SWIGLU, ROTATE, LOGITS, STORE
    WRITER,  # as whom it writes OUT: products that share a vector have one name
    OLD_WRITER,  # of ADD: the instruction that wrote OUT last
    NORM,  # address of float32[N_COLS], the weights of an RMSNorm of x; 0 for none
    EPS,  # bits of its epsilon
    N_ROWS,  # of the matrix; of CHOOSE: of a group, where LOGITS shares them out
    PAIR_STEP,  # between first rows of pairs,
    PAIR_JUMP,  # and between the two of a pair, see rows.py; ROTATE of halves has its own rule
    N_COLS,  # of the product: all of the matrix's, or some of them, from FIRST_SPAN on
    FIRST_SPAN,
    N_UNITS,  # 16-byte loads of quants that a row takes up to the last of these columns
    X_COLS,  # numbers of X, of a sequence
    GROUPS_A_BLOCK,  # groups of rows: so many for each block (CHOOSE has LOGITS' share, too),
    GROUPS_LEFT,  # and one more for so many of the first blocks
    PANEL_GROUPS,  # groups of rows whose partial results find room in shared memory
    PENDING_GROUPS,  # groups whose results may wait in shared memory, see pending.py; 0: none
    LEAVES,  # 1: and they are left to the next instruction
    SLICE_SHIFT,  # log2 of the slices that the columns come in, see sliced.py; then the blocks that
    # have the same rows count as one
    SLICE_COLS,  # of each but the last
    N_PARTS,  # numbers that a result is the sum of
    PARTS,  # address of exchange words uint32[N_PARTS, pairs of rows, n_seqs, 2, 2]
    PART_SQUARES,  # address of exchange words uint32[blocks / slices, n_seqs, MAX_SLICES, 2]
    N_STAGES,  # of a slice
    STAGE_COLS,  # columns of x in shared memory at a time
    CHUNK_SPANS,  # spans of an item; see items.py
    STAGE_SPANS,  # of a stage
    STAGE_CHUNKS,  # items of a group in a stage
    STAGE_INVERSE,  # 2^16 / STAGE_CHUNKS, rounded up: a division of numbers up to 16 without one
    LAST_SPANS,  # the same of the last stage
    LAST_CHUNKS,
    LAST_INVERSE,
    QUANTS,  # address of uint32[N_ROWS, QUANT_WORDS]; see planes.py
    QUANT_WORDS,
    HIGHS,  # address of uint32[N_ROWS, HIGH_WORDS]
    HIGH_WORDS,
    SCALES,  # address of uint16 or uint32[N_ROWS, SCALE_WORDS]
    SCALE_WORDS,
    BIAS,  # address of float32[N_ROWS]
    FIRST_ROW,  # of ROTATE: which row of Q, K and V stacked is the matrix's first
    ANGLES,  # address of float32[MAX_SEQ_LEN or more, rope_dim / 2, 2]: cos and sin
    # ATTEND
    K_CACHE,  # address of one layer's float16[n_seqs, n_kv_heads, max_seq_len, head_dim]
    V_CACHE,
    INNER,  # bits of what scores are multiplied by, in units of ln 2
    FACTOR,  # bits of what EMBED and products multiply by, where Form.has_factors
    WINDOW,  # keys that a row sees
    PARTIAL,  # address of exchange words uint32[n_seqs, n_heads, N_SPLITS, head_dim + 2, 2]
    N_SPLITS,
    # EMBED and CHOOSE
    TABLE,  # address of uint8[VOCAB_SIZE, ROW_BYTES]
    ROW_BYTES,
    VOCAB_SIZE,
    TOKEN_IDS,
    POS,
    N_LEFT,
    STOP_IDS,
    CONTROL,
    COMMANDS,
    ANSWERS,
    N_TAKEN,
    LOGITS_LEFT,  # DecodeState.logits
    SETTINGS,  # and the other buffers of the sampler
    TOP_K,
    SEED,
    BIAS_IDS,
    BIAS_VALUES,
    MAX_BIAS,
    HISTORY,
    MASKED,
    MASKS,
) = range(83)
N_WORDS: Final = 83

# ATTEND, where Q and K have norms: addresses of their weights, in words that a product has.
Q_NORM, K_NORM = NORM, BIAS

# Operations.
EMBED, ATTEND, CHOOSE, PRODUCT = range(4)
ADD_NORMED: Final = 7  # beyond a PRODUCT of each type

# What becomes of a product's results.
ADD, SWIGLU, ROTATE, LOGITS, STORE = range(5)
