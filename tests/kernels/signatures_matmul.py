"""Signatures of the matrix products: every type, and every number of tokens for one of them."""

from gguf import GGMLQuantizationType as GGMLType
from numba import types
from signature import F16_2, F32_1, F32_2, I32, I32_1, I64, Signature

from m40llm.kernels import add_bias, dequantize_rows, gemm, gemv, gemv_experts
from m40llm.kernels.gemm_choice import TILES
from m40llm.kernels.gemm_tiles import Tile
from m40llm.kernels.layouts import DENSE, LAYOUTS

U8_2, U16_2, U32_2 = (types.Array(t, 2, "C") for t in (types.uint8, types.uint16, types.uint32))


def of_gemv(
    ggml_type: GGMLType, n_tokens: int, n_rows: int, *, swiglu: bool = False, bias: bool = False
) -> Signature:
    chunk_cols = gemv.StagedShape(ggml_type, n_tokens, 14336).chunk_cols
    form = gemv.Form(ggml_type, n_tokens, n_rows, chunk_cols, swiglu, bias, bias)
    label = f"{ggml_type.name}-{n_tokens}x{n_rows}{'-swiglu' * swiglu}{'-bias' * bias}"
    arg_types = (*planes_of(ggml_type), F32_2, F32_1 if bias else F32_2, F32_2)
    return Signature(gemv._compile(form), arg_types, gemv.N_THREADS, label)


def of_gemv_experts(
    ggml_type: GGMLType, n_rows: int, x_slots: int, *, swiglu: bool = False
) -> Signature:
    chunk_cols = gemv.StagedShape(ggml_type, 1, 14336).chunk_cols
    form = gemv_experts.Form(ggml_type, n_rows, chunk_cols, x_slots, swiglu)
    label = f"{ggml_type.name}-{n_rows}x{x_slots}{'-swiglu' * swiglu}"
    arg_types = (*planes_of(ggml_type), F32_2, I32_1, F32_2)
    return Signature(gemv_experts._compile(form), arg_types, gemv.N_THREADS, label)


def of_gemm(
    ggml_type: GGMLType, tile: Tile, *, split: bool = False, half: bool = False, bias: bool = False,
    bands: bool = False,
) -> Signature:  # fmt: skip
    kernel = gemm._compile(ggml_type, tile, split, half, bias, bias, bands)
    shape = f"{tile.n_tokens}x{tile.n_rows}x{tile.n_groups}"
    marks = f"{'-split' * split}{'-half' * half}{'-bias' * bias}{'-bands' * bands}"
    label = f"{ggml_type.name}-{shape}{marks}"
    x, shared = F16_2 if half else F32_2, (F32_1, I32_1) if split else (F32_2, F32_2)
    arg_types = (*planes_of(ggml_type), x, F32_1 if bias else F32_2, *shared, F32_2, I32, I32)
    return Signature(kernel, arg_types, tile.n_threads, label)


def of_dequantize_rows(ggml_type: GGMLType) -> Signature:
    arg_types = (*planes_of(ggml_type), I64, F32_2)
    kernel = dequantize_rows._compile(ggml_type)
    return Signature(kernel, arg_types, dequantize_rows.N_THREADS, ggml_type.name)


def planes_of(ggml_type: GGMLType) -> tuple[types.Type, ...]:
    if ggml_type in DENSE:
        return U32_2, U32_2, U32_2
    return U32_2, U32_2, (U8_2, U16_2, U32_2)[LAYOUTS[ggml_type].scale_bytes // 2]


TYPES = (*DENSE, *LAYOUTS)
SOME = (GGMLType.F16, GGMLType.Q4_0, GGMLType.Q6_K)
SIGNATURES = [
    *(of_gemv(ggml_type, 1, n_rows) for ggml_type in TYPES for n_rows in (1, 4)),
    *(of_gemv(ggml_type, 8, 2) for ggml_type in TYPES),
    *(of_gemv(GGMLType.Q5_K, n, gemv.rows_a_warp(10**6, n, 132)) for n in (3, 5, 7)),
    of_gemv(GGMLType.Q6_K, 1, 2),
    *(of_gemv(ggml_type, 2, 4, swiglu=True) for ggml_type in SOME),
    *(of_gemv(ggml_type, 2, 4, bias=True) for ggml_type in SOME),
    *(of_gemv_experts(ggml_type, 4, 8, swiglu=True) for ggml_type in TYPES),
    *(of_gemv_experts(ggml_type, 4, 1) for ggml_type in TYPES),
    *(of_gemv_experts(ggml_type, n, 1, swiglu=n > 1) for ggml_type in SOME for n in (1, 2)),
    *(of_gemm(ggml_type, Tile(128, 128)) for ggml_type in TYPES),
    *(of_gemm(GGMLType.F16, tile, split=True) for tile in TILES),
    *(of_gemm(ggml_type, Tile(128, 128), split=True, bands=True) for ggml_type in TYPES),
    of_gemm(GGMLType.F16, Tile(128, 128), bands=True),
    *(of_gemm(GGMLType.Q6_K, tile) for tile in TILES if tile != Tile(128, 128)),
    *(
        of_gemm(GGMLType.Q5_K, tile, half=True, bias=True)
        for tile in (Tile(64, 64), Tile(128, 128))
    ),
    *(of_dequantize_rows(ggml_type) for ggml_type in TYPES),
    Signature(add_bias._compile(), (F32_1, F32_2), add_bias.N_THREADS),
]
