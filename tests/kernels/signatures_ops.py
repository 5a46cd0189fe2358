"""Signatures of the small ops."""

from signature import (
    F16_1,
    F16_4,
    F32,
    F32_1,
    F32_2,
    F32_3,
    I8_4,
    I32,
    I32_1,
    I32_2,
    I64_2,
    U8_2,
    U64_1,
    Signature,
)

from m40llm.kernels import (
    add_rows,
    add_shares,
    argmax,
    cast,
    choose_experts,
    embedding,
    rms_norm,
    rope,
    rope_append_q8,
    sampling,
    scale,
    softcap,
    softmax,
    swiglu,
    top_k,
)
from m40llm.kernels.program import ends
from m40llm.kernels.program.form import N_THREADS
from m40llm.kernels.quant_blocks import WEIGHT_OF

_APPEND = (F32_3, F32_3, F32_3, F16_4, F16_4, I32_1, I32_1, F32_2, F32_2)
_APPEND_Q8 = (*(F32_3,) * 3, *(I8_4, F16_4) * 2, I32_1, I32_1, F32_2, F32_2)
_NORM = (F32_2, F32_2, F32_1, F32, F32_2)
_STATE = (F32_2, I32_1, U64_1, I32_2, F32_2, I32_2)

SIGNATURES = [
    *(
        Signature(make(n_seqs), (I64_2,), N_THREADS, f"{n_seqs} slots")
        for make in (ends._compile_begin, ends._compile_survey, ends._compile_end)
        for n_seqs in (1, 64)
    ),
    Signature(cast._compile_to_half(), (F32_1, F16_1), cast.N_THREADS),
    Signature(cast._compile_to_float(), (F16_1, F32_1), cast.N_THREADS),
    *(
        Signature(embedding._compile(kind), (U8_2, I32_1, F32_2), embedding.N_THREADS, kind.name)
        for kind in WEIGHT_OF
    ),
    Signature(embedding._compile_take_rows(), (F32_2, I32_1, F32_2), embedding.N_THREADS),
    *(
        Signature(rms_norm._compile(n_quads, is_sum), _NORM, 256, f"{n_quads} {is_sum}")
        for n_quads in (1, 4, 8)
        for is_sum in (False, True)
    ),
    *(
        Signature(rms_norm._compile_any(is_sum), _NORM, 256, str(is_sum))
        for is_sum in (False, True)
    ),
    Signature(rms_norm._compile_heads(), (F32_3, F32_1, F32, F32_3), 128),
    *(
        Signature(swiglu._compile(name), (F32_2, F32_2, F32_2), swiglu.N_THREADS, name)
        for name in ("silu", "gelu_tanh")
    ),
    Signature(add_rows._compile(), (F32_2, I32_1, F32_1, F32_2), add_rows.N_THREADS),
    Signature(add_shares._compile(), (F32_2, I32, F32_1, F32_2), add_shares.N_THREADS),
    *(
        Signature(
            choose_experts._compile(is_normalised),
            (F32_2, I32, F32, I32_1, F32_1),
            choose_experts.WARP_SIZE,
            str(is_normalised),
        )
        for is_normalised in (True, False)
    ),
    Signature(scale._compile(), (F32_2, F32), scale.N_THREADS),
    Signature(scale._compile_add(), (F32_2, F32_2, F32), scale.N_THREADS),
    Signature(softcap._compile(), (F32_2, F32, F32), softcap.N_THREADS),
    Signature(softmax._compile(256), (F32_2, F32_2), 256),
    *(
        Signature(rope._compile(layout), (F32_3, I32_1, F32_2, F32_2), 128, layout)
        for layout in ("interleaved", "half")
    ),
    *(
        Signature(rope._compile_append(layout), _APPEND, 128, layout)
        for layout in ("interleaved", "half")
    ),
    *(
        Signature(rope_append_q8._compile(layout), _APPEND_Q8, 128, layout)
        for layout in ("interleaved", "half")
    ),
    Signature(argmax._compile(), (F32_2, I32_1), argmax.N_THREADS),
    Signature(top_k._compile(top_k.N_THREADS), (F32_2, F32_2, I32_2), top_k.N_THREADS),
    Signature(
        sampling._compile(sampling.N_THREADS),
        (F32_2, I32_1, I32_1, *_STATE, I32_1),
        sampling.N_THREADS,
    ),
    Signature(sampling._compile_note_prompt(), (I32_1, I32_1, I32_2), 256),
]
