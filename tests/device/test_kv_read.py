"""kv.read: one token out of the cache, on every device, by the documented layout; and the page."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m40llm import reference
from m40llm.device import open_device
from m40llm.device.ops import Ops
from m40llm.errors import RequestError
from m40llm.model.hparams import HParams
from m40llm.model.kv_cache import KV_TYPES, KVCache, KVType, cache_bytes
from m40llm.model.rope import rope_table
from m40llm.model.rope_params import RopeParams

PAGE = Path(__file__).parents[2] / "docs" / "parity_and_kv_layout.md"
DEVICES = [
    pytest.param("cpu"),
    pytest.param("emulator"),
    pytest.param("cuda", marks=pytest.mark.gpu),
]


def hparams(n_layers: int, n_kv_heads: int, head_dim: int) -> HParams:
    return HParams(
        arch="llama",
        context_length=2**25,
        vocab_size=32,
        n_layers=n_layers,
        n_embd=2 * n_kv_heads * head_dim,
        n_ff=32,
        n_heads=2 * n_kv_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        norm_eps=1e-5,
        rope=RopeParams(rope_dim=head_dim),
    )


def uploaded(ops: Ops, values: np.ndarray) -> Any:
    buffer = ops.empty(values.shape, values.dtype)
    ops.write(buffer, values)
    return buffer


def append(ops: Ops, kv: KVCache, layer: int, seq: list[int], pos: list[int]) -> np.ndarray:
    """Appends a token to each (seq, pos) of one layer, by the op; its V: whole numbers."""
    _, _, n_kv_heads, _, head_dim = kv.k.shape
    rng = np.random.default_rng(layer)
    shape = (len(seq), n_kv_heads, head_dim)
    q = uploaded(ops, np.zeros((len(seq), 2 * n_kv_heads, head_dim), np.float32))
    k, v = (rng.integers(-99, 99, shape).astype(np.float32) for _ in range(2))
    table = rope_table(ops, RopeParams(rope_dim=head_dim), "half", 16, None)
    rows = (uploaded(ops, np.array(rows, np.int32)) for rows in (seq, pos))
    ops.rope_append(q, uploaded(ops, k), uploaded(ops, v), kv.k[layer], kv.v[layer], *rows, table)
    np.maximum.at(kv.seq_lens, seq, np.array(pos) + 1)
    return v


@pytest.mark.parametrize("device", DEVICES)
def test_read_follows_the_layout(device: str) -> None:
    """Every token of both layers, against the raw buffer by the formula and what was appended."""
    ops, _ = open_device(device)
    hp = hparams(n_layers=2, n_kv_heads=3, head_dim=32)
    kv = KVCache(ops, hp, n_seqs=2, max_seq_len=11)
    seq, pos = [1, 0, 1, 1], [0, 0, 1, 2]
    for buffer in (kv.k, kv.v):  # all of it is read below
        ops.write(buffer, np.full(buffer.shape, 6e4, ops.cache_dtype))
    appended = [append(ops, kv, layer, seq, pos) for layer in range(2)]
    flat = [ops.read(buffer).reshape(-1) for buffer in (kv.k, kv.v)]
    assert sum(a.nbytes for a in flat) == cache_bytes(hp, 2, 11, ops.cache_dtype.itemsize)
    for layer in range(2):
        for row, (s, p) in enumerate(zip(seq, pos, strict=True)):
            k, v = kv.read(layer, s, p)
            assert k.shape == v.shape == (3, 32)
            np.testing.assert_array_equal(v, appended[layer][row])
            for head in range(3):
                at = (((layer * 2 + s) * 3 + head) * 11 + p) * 32
                np.testing.assert_array_equal(k[head], flat[0][at : at + 32])
                np.testing.assert_array_equal(v[head], flat[1][at : at + 32])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_copy_of_a_prefix(device: str, kv_type: KVType) -> None:
    """All of it and nothing else, in each layer and head."""
    ops, _ = open_device(device)
    kv = KVCache(ops, hparams(n_layers=2, n_kv_heads=3, head_dim=32), 3, 11, kv_type)
    parts = [p for c in (kv.k, kv.v) for p in ((c.quants, c.scales) if kv_type == "q8_0" else (c,))]
    rng = np.random.default_rng(0)
    before = [rng.integers(-99, 99, part.shape).astype(part.dtype) for part in parts]
    for part, values in zip(parts, before, strict=True):
        ops.write(part, values)
    kv.copy_prefix(2, 0, 7)
    for part, expected in zip(parts, before, strict=True):
        expected[:, 0, :, :7] = expected[:, 2, :, :7]
        np.testing.assert_array_equal(ops.read(part), expected)
    assert kv.seq_lens.tolist() == [7, 0, 0]


@pytest.mark.parametrize("device", DEVICES)
def test_read_of_q8_0(device: str) -> None:
    """Quants and scales lie as the elements of f16 do; what is read is their product."""
    ops, _ = open_device(device)
    hp = hparams(n_layers=2, n_kv_heads=3, head_dim=64)
    kv = KVCache(ops, hp, n_seqs=2, max_seq_len=11, kv_type="q8_0")
    assert (kv.k.shape, kv.k[1, 0].shape) == ((2, 2, 3, 11, 64), (3, 11, 64))
    for cache in (kv.k, kv.v):
        ops.write(cache.quants, np.full(cache.quants.shape, 99, np.int8))
        ops.write(cache.scales, np.full(cache.scales.shape, 6e4, np.float16))
    seq, pos = [1, 0, 1, 1], [0, 0, 1, 2]
    appended = [append(ops, kv, layer, seq, pos) for layer in range(2)]
    quants, scales = (ops.read(part).reshape(-1) for part in (kv.v.quants, kv.v.scales))
    assert 2 * (quants.nbytes + scales.nbytes) == cache_bytes(hp, 2, 11, 2, "q8_0")
    for layer in range(2):
        for row, (s, p) in enumerate(zip(seq, pos, strict=True)):
            k, v = kv.read(layer, s, p)
            assert k.shape == v.shape == (3, 64)
            expected = reference.quantise_q8(appended[layer][row])
            np.testing.assert_array_equal(v, reference.dequantise_q8(*expected))
            for head in range(3):
                at = (((layer * 2 + s) * 3 + head) * 11 + p) * 64
                np.testing.assert_array_equal(quants[at : at + 64], expected[0][head])
                np.testing.assert_array_equal(scales[at // 32 : at // 32 + 2], expected[1][head])


@pytest.mark.parametrize("device", DEVICES)
def test_read_refuses_what_is_not_cached(device: str) -> None:
    ops, _ = open_device(device)
    kv = KVCache(ops, hparams(1, 1, 32), n_seqs=1, max_seq_len=4)
    append(ops, kv, 0, [0], [0])
    for layer, seq, pos in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, -1), (-1, 0, 0)):
        with pytest.raises(RequestError, match=r"kv\.read"):
            kv.read(layer, seq, pos)
    kv.truncate(0, 0)
    with pytest.raises(RequestError, match="the cache holds 0 tokens"):
        kv.read(0, 0, 0)


def test_read_beyond_2_to_31_elements() -> None:
    """A layer whose first element is number 2^31: only the pages that are written take memory."""
    ops, _ = open_device("emulator")
    kv = KVCache(ops, hparams(2, 2, 64), n_seqs=1, max_seq_len=2**24)
    assert kv.k[0].size == 2**31
    v = append(ops, kv, 1, [0, 0], [3, 7])
    for row, pos in enumerate((3, 7)):
        np.testing.assert_array_equal(kv.read(1, 0, pos)[1], v[row])
    flat = kv.v.reshape(-1)
    at = ((1 * 2 + 1) * 2**24 + 7) * 64
    np.testing.assert_array_equal(flat[at : at + 64], v[1, 1])


@pytest.mark.parametrize("device", DEVICES[1:])  # the cpu ops would be compiled for this alone
def test_the_page_runs(device: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    match = re.search(r"```python\n(.*?)```", page, re.S)
    assert match
    code = match[1].replace('open_device("emulator")', f'open_device("{device}")')
    assert f'"{device}"' in code
    exec(compile(code, str(PAGE), "exec"), {})


def test_the_pages_numbers_are_those_of_the_formula() -> None:
    """The table of strides of a Llama 3.2 1B."""
    page = PAGE.read_text(encoding="utf-8")
    elements = [1, 64, 4096 * 64, 8 * 4096 * 64, 8 * 4096 * 64, 16 * 8 * 4096 * 64]
    rows = re.findall(r"^\| (?:`\w+`|all of K) \| .*? \| ([\d,]+) \| ([\d,]+) \|$", page, re.M)
    got = [(int(a.replace(",", "")), int(b.replace(",", ""))) for a, b in rows]
    assert got == [(n, 2 * n) for n in elements]
