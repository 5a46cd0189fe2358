"""kernels/intrinsics.py, bits.py, reduce.py: right on the emulator, and the PTX that was wanted."""

import re

import numpy as np
import pytest
from numba import cuda, float32, types, uint32
from numba.cuda import compile_ptx

from m40llm.device.emulator import Emulator
from m40llm.device.emulator.errors import OutOfBoundsError
from m40llm.device.emulator.frontend import no_driver_needed
from m40llm.kernels import intrinsics as it
from m40llm.kernels.bits import (
    float2_to_half2,
    float_as_uint,
    half2_to_float2,
    permute_bytes,
    uint_as_float,
    within_half,
)
from m40llm.kernels.hints import pinned
from m40llm.kernels.reduce import warp_max, warp_sum

load_float2, load_float4 = it.load_float2, it.load_float4
load_float2_readonly, load_float4_readonly = it.load_float2_readonly, it.load_float4_readonly
load_float2_shared, load_float4_shared = it.load_float2_shared, it.load_float4_shared
load_uint2, load_uint4 = it.load_uint2, it.load_uint4
load_uint2_readonly, load_uint4_readonly = it.load_uint2_readonly, it.load_uint4_readonly
load_uint2_shared, load_uint4_shared = it.load_uint2_shared, it.load_uint4_shared
store_float2, store_float4 = it.store_float2, it.store_float4
store_float2_shared, store_float4_shared = it.store_float2_shared, it.store_float4_shared
store_uint2, store_uint4 = it.store_uint2, it.store_uint4
store_uint2_shared, store_uint4_shared = it.store_uint2_shared, it.store_uint4_shared
load_volatile, store_volatile = it.load_volatile, it.store_volatile
load_uint4_streaming, load_uint2_streaming = it.load_uint4_streaming, it.load_uint2_streaming
as_bytes, store_float_shared = it.as_bytes, it.store_float_shared


def wide_floats(x, y):
    s = cuda.shared.array(192, float32, alignment=16)
    t = cuda.threadIdx.x
    a, b, c, d = load_float4(x, 4 * t)
    e, f = load_float2(x, 2 * t)
    store_float4_shared(s, 4 * t, d, c, b, a)
    store_float2_shared(s, 128 + 2 * t, f, e)
    cuda.syncthreads()
    a, b, c, d = load_float4_shared(s, 4 * (t ^ 1))
    e, f = load_float2_shared(s, 128 + 2 * (t ^ 1))
    store_float4(y, 4 * t, a, b, c, d)
    store_float2(y, 128 + 2 * t, e, f)
    a, b, c, d = load_float4_readonly(x, 4 * (t ^ 1))
    e, f = load_float2_readonly(x, 2 * (t ^ 1))
    y[192 + t] = a + b + c + d + e + f


def wide_uints(x, y):
    s = cuda.shared.array(192, uint32, alignment=16)
    t = cuda.threadIdx.x
    a, b, c, d = load_uint4(x, 4 * t)
    e, f = load_uint2(x, 2 * t)
    store_uint4_shared(s, 4 * t, d, c, b, a)
    store_uint2_shared(s, 128 + 2 * t, f, e)
    cuda.syncthreads()
    a, b, c, d = load_uint4_shared(s, 4 * (t ^ 1))
    e, f = load_uint2_shared(s, 128 + 2 * (t ^ 1))
    store_uint4(y, 4 * t, a, b, c, d)
    store_uint2(y, 128 + 2 * t, e, f)
    a, b, c, d = load_uint4_readonly(x, 4 * (t ^ 1))
    e, f = load_uint2_readonly(x, 2 * (t ^ 1))
    y[192 + t] = a + b + c + d + e + f


def expected_wide(x: np.ndarray) -> np.ndarray:
    quads, pairs = x[:128].reshape(32, 4), x[:64].reshape(32, 2)
    other = np.arange(32) ^ 1
    moved = [quads[other, ::-1].reshape(-1), pairs[other, ::-1].reshape(-1)]
    return np.concatenate([*moved, (quads.sum(1) + pairs.sum(1))[other]]).astype(x.dtype)


def test_wide_loads_and_stores(emulator: Emulator) -> None:
    for kernel, dtype in ((wide_floats, np.float32), (wide_uints, np.uint32)):
        x = np.random.default_rng(0).integers(0, 1000, 128).astype(dtype)
        y = emulator.alloc(224, dtype)
        emulator.launch(kernel, 1, 32, (emulator.upload(x, read_only=True), y))
        np.testing.assert_array_equal(y, expected_wide(x))


def half_pairs(packed, floats, back):
    i = cuda.grid(1)
    tie = uint_as_float(uint32(0x3F801000))  # 1 + 2^-11, between two FP16
    low, high = half2_to_float2(packed[i])
    floats[2 * i] = low
    floats[2 * i + 1] = high
    back[i] = float2_to_half2(low, high)
    back[i + packed.size] = float2_to_half2(low * float32(1.0005), tie)


def test_half2_rounds_to_nearest_even(emulator: Emulator) -> None:
    h = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.float16)
    floats, back = np.zeros(1 << 16, np.float32), np.zeros(1 << 16, np.uint32)
    emulator.launch(half_pairs, 1 << 5, 1 << 10, (h.view(np.uint32), floats, back))
    with np.errstate(invalid="ignore", over="ignore"):
        np.testing.assert_array_equal(floats, h.astype(np.float32))
        rounded = (h.astype(np.float32)[::2] * np.float32(1.0005)).astype(np.float16)
    np.testing.assert_array_equal(back[: 1 << 15].view(np.float16), h)
    np.testing.assert_array_equal(back[1 << 15 :].view(np.float16)[::2], rounded)
    assert (back[1 << 15 :].view(np.float16)[1::2] == 1).all()  # to even


def bits_and_reductions(x, out, flags):
    t = cuda.threadIdx.x
    out[0, t] = warp_sum(x[t])
    out[1, t] = warp_max(x[t])
    out[2, t] = uint_as_float(float_as_uint(x[t]) ^ uint32(0x80000000))
    if load_volatile(flags, t) == 0:
        store_volatile(flags, t, t)


def test_bits_and_reductions(emulator: Emulator) -> None:
    x = np.random.default_rng(1).integers(-50, 50, 64).astype(np.float32)
    out, flags = np.zeros((3, 64), np.float32), np.zeros(64, np.int32)
    emulator.launch(bits_and_reductions, 1, 64, (x, out, flags))
    warps = x.reshape(2, 32)
    np.testing.assert_array_equal(out[0], np.repeat(warps.sum(1), 32))
    np.testing.assert_array_equal(out[1], np.repeat(warps.max(1), 32))
    np.testing.assert_array_equal(out[2], -x)
    np.testing.assert_array_equal(flags, np.arange(64))


def instructions(kernel, *dtypes: types.Type) -> set[str]:
    """The loads, stores, conversions and shuffles of the kernel's PTX for sm_52."""
    arrays = [types.Array(dtype, ndim, "C") for dtype, ndim in dtypes]
    with no_driver_needed():
        ptx, _ = compile_ptx(kernel, types.void(*arrays), cc=(5, 2))
    assert ".target sm_52" in ptx
    assert not re.search(r"\.f64\b", ptx)
    return set(re.findall(r"^\s+(?:@%p\d+ )?((?:ld|st|cvt|shfl)\.[\w.]+)", ptx, re.M))


def test_the_ptx_is_what_was_wanted() -> None:
    floats = instructions(wide_floats, (types.float32, 1), (types.float32, 1))
    for width in ("v2", "v4"):
        assert {f"ld.global.{width}.f32", f"ld.global.nc.{width}.f32"} <= floats
        assert {f"st.global.{width}.f32", f"ld.shared.{width}.f32"} <= floats
        assert f"st.shared.{width}.f32" in floats
    uints = instructions(wide_uints, (types.uint32, 1), (types.uint32, 1))
    for width in ("v2", "v4"):
        assert {f"ld.global.{width}.u32", f"ld.global.nc.{width}.u32"} <= uints
        assert {f"st.global.{width}.u32", f"ld.shared.{width}.u32"} <= uints
    pairs = instructions(half_pairs, (types.uint32, 1), (types.float32, 1), (types.uint32, 1))
    assert {"cvt.f32.f16", "cvt.rn.f16.f32"} <= pairs
    kinds = (types.float32, 1), (types.float32, 2), (types.int32, 1)
    polls = instructions(bits_and_reductions, *kinds)
    assert {"ld.volatile.global.u32", "st.volatile.global.u32", "shfl.sync.bfly.b32"} <= polls


def streamed(x, y):
    s = cuda.shared.array(32, uint32)
    t = cuda.threadIdx.x
    a, b, c, d = load_uint4_streaming(x, 4 * t)
    s[t] = a + b + c + d
    cuda.syncthreads()
    y[t] = s[t ^ 1]


def test_a_streaming_load_is_a_load(emulator: Emulator) -> None:
    x, y = np.arange(128, dtype=np.uint32), np.zeros(32, np.uint32)
    emulator.launch(streamed, 1, 32, (x, y))
    np.testing.assert_array_equal(y, x.reshape(32, 4).sum(1)[np.arange(32) ^ 1])
    found = instructions(streamed, (types.uint32, 1), (types.uint32, 1))
    assert "ld.global.cs.nc.v4.u32" in found


def test_a_streaming_load_is_checked() -> None:
    x, y = np.arange(124, dtype=np.uint32), np.zeros(32, np.uint32)
    with pytest.raises(OutOfBoundsError):
        Emulator(time_limit_s=60).launch(streamed, 1, 32, (x, y))


def through_bytes(x, y, stride):
    s = cuda.shared.array(32, float32)
    t = pinned(cuda.threadIdx.x)
    store_float_shared(as_bytes(s), stride * t, x[t])
    cuda.syncthreads()
    y[t] = s[t ^ 1]


def test_bytes_of_a_shared_array_are_its_memory(emulator: Emulator) -> None:
    x, y = np.arange(32, dtype=np.float32), np.zeros(32, np.float32)
    emulator.launch(through_bytes, 1, 32, (x, y, np.int32(4)))
    np.testing.assert_array_equal(y, x[np.arange(32) ^ 1])
    with pytest.raises(OutOfBoundsError):
        Emulator(time_limit_s=60).launch(through_bytes, 1, 32, (x, y, np.int32(8)))


def permuted(words, selectors, out):
    i = cuda.grid(1)
    if i < out.size:
        out[i] = permute_bytes(words[0], words[1], selectors[i])


def test_bytes_are_permuted(emulator: Emulator) -> None:
    """prmt.b32: three bits choose one of eight bytes, the fourth its sign, eight times."""
    words = np.array([0x83726150, 0xF7E6D5C4], np.uint32)
    selectors = np.random.default_rng(0).integers(0, 2**32, 500, np.uint32)
    out = np.zeros(500, np.uint32)
    emulator.launch(permuted, 4, 128, (words, selectors, out))
    pool = words.view(np.uint8)
    nibbles = (selectors[:, None] >> (4 * np.arange(4, dtype=np.uint32))) & 15
    chosen = pool[nibbles & 7]
    signs = np.where(chosen >> 7, 0xFF, 0).astype(np.uint8)
    expected = np.where(nibbles >> 3, signs, chosen).astype(np.uint8)
    np.testing.assert_array_equal(out.view(np.uint8).reshape(-1, 4), expected)


def streamed_pairs(x, out):
    i = cuda.threadIdx.x
    out[2 * i], out[2 * i + 1] = load_uint2_streaming(x, 2 * i)


def test_eight_bytes_are_streamed(emulator: Emulator) -> None:
    x, out = np.arange(64, dtype=np.uint32), np.zeros(64, np.uint32)
    emulator.launch(streamed_pairs, 1, 32, (x, out))
    np.testing.assert_array_equal(out, x)
    with pytest.raises(OutOfBoundsError):
        Emulator(time_limit_s=60).launch(streamed_pairs, 1, 32, (x[:62].copy(), out))


def bounded(x, out):
    out[cuda.threadIdx.x] = within_half(x[cuda.threadIdx.x])


def test_within_half(emulator: Emulator) -> None:
    x = np.array([65504, 65505, -7e4, np.inf, -np.inf, np.nan, 0, -1], np.float32)
    out = np.zeros(8, np.float32)
    emulator.launch(bounded, 1, 8, (x, out))
    np.testing.assert_array_equal(out, [65504, 65504, -65504, 65504, -65504, np.nan, 0, -1])
