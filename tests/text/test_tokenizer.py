"""Tokenizers of small hand-made vocabularies: special tokens, round trips, refusals."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vocab_files import BPE, SPM, bpe_keys, spm_keys, write

from m40llm.errors import ModelFileError, RequestError, UnsupportedModelError
from m40llm.text import Tokenizer, tokenizer_from_gguf
from m40llm.text.pretokenizers import PRE_TOKENIZERS

SPM_ID = {text: token_id for token_id, (text, _, _) in enumerate(SPM)}
BPE_ID = {text: token_id for token_id, (text, _) in enumerate(BPE)}
TEXTS = st.text(st.characters(codec="utf-8")) | st.text("abh el'\n19é日<>|")


@pytest.fixture(scope="module", params=["spm", "bpe"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    keys = spm_keys() if request.param == "spm" else bpe_keys()
    return tokenizer_from_gguf(write(tmp_path_factory.mktemp("vocab") / "vocab.gguf", keys))


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizer_from_gguf(write(tmp_path_factory.mktemp("vocab") / "spm.gguf", spm_keys()))


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizer_from_gguf(write(tmp_path_factory.mktemp("vocab") / "bpe.gguf", bpe_keys()))


@given(text=TEXTS)
def test_decode_undoes_encode(tokenizer: Tokenizer, text: str) -> None:
    for parse_special in (False, True):
        ids = tokenizer.encode(text, add_bos=False, parse_special=parse_special)
        assert tokenizer.decode(ids) == text


@given(text=TEXTS)
def test_inside_a_text_the_bytes_are_those_of_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode_inside(text)
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


def test_inside_a_text_only_user_defined_tokens_are_found(spm: Tokenizer, bpe: Tokenizer) -> None:
    assert spm.token_text(spm.encode_inside("a<tool>")[-1]) == "<tool>"
    assert not any(map(spm.is_special, spm.encode_inside("a</s>")))
    assert [bpe.token_text(token_id) for token_id in bpe.encode_inside("h  a")] == ["h", "  ", "a"]


@given(ids=st.lists(st.integers(0, min(len(SPM), len(BPE)) - 1)), skip_special=st.booleans())
def test_stream_equals_decode(tokenizer: Tokenizer, ids: list[int], skip_special: bool) -> None:
    decoder = tokenizer.stream_decoder(skip_special)
    pieces = [decoder.push(token_id) for token_id in ids]
    assert "".join(pieces) + decoder.flush() == tokenizer.decode(ids, skip_special)


def test_a_character_comes_whole(bpe: Tokenizer) -> None:
    decoder = bpe.stream_decoder()
    assert [decoder.push(token_id) for token_id in bpe.encode("é日")] == ["", "é", "", "", "日"]
    assert decoder.push(bpe.encode("é")[0]) == ""
    assert decoder.flush() == "\ufffd"


def test_spm_merges_by_score_and_falls_back_to_bytes(spm: Tokenizer) -> None:
    assert spm.encode("ab") == [1, SPM_ID["▁ab"]]
    assert spm.encode("é", add_bos=False) == [SPM_ID["▁"], 3 + 0xC3, 3 + 0xA9]
    assert spm.decode([SPM_ID["▁ab"]]) == "ab"
    assert spm.decode([SPM_ID["▁ab"]], continuing=True) == " ab"


def test_spm_special_tokens(spm: Tokenizer) -> None:
    plain = spm.encode("<s>a", add_bos=False)
    assert plain[0] != 1
    assert spm.encode("<s>a", add_bos=False, parse_special=True) == [1, SPM_ID["▁a"]]
    assert spm.encode("a<tool>b", add_bos=False) == [
        SPM_ID["▁a"],
        SPM_ID["<tool>"],
        SPM_ID["▁b"],
    ]
    assert spm.decode([1, SPM_ID["▁a"], 2]) == "<s>a</s>"
    assert spm.decode([1, SPM_ID["▁a"], 2], skip_special=True) == "a"
    assert spm.token_bytes(SPM_ID["[spare]"]) == b""


def test_roles_and_stops(spm: Tokenizer, bpe: Tokenizer) -> None:
    assert (spm.bos_id, spm.eos_id, spm.unk_id, spm.pad_id) == (1, 2, 0, None)
    assert (spm.add_bos, spm.add_eos, bpe.add_bos) == (True, False, False)
    assert spm.eot_id == SPM_ID["<|im_end|>"]
    assert spm.stop_ids == {2, SPM_ID["<|im_end|>"]}
    assert spm.is_special(SPM_ID["<|im_end|>"])  # a normal token in the file, known by its text
    assert bpe.stop_ids == {BPE_ID["<|endoftext|>"], BPE_ID["<|im_end|>"], BPE_ID["[PAD]"]}


def test_bpe_special_tokens(bpe: Tokenizer) -> None:
    assert bpe.encode("hel he") == [BPE_ID["hel"], BPE_ID["Ġhe"]]
    assert bpe.encode("he   hel") == [BPE_ID["he"], BPE_ID["   "], BPE_ID["hel"]]  # longest first
    text = "<|im_start|>he<|im_end|>"
    assert bpe.encode(text, parse_special=True) == [
        BPE_ID["<|im_start|>"],
        BPE_ID["he"],
        BPE_ID["<|im_end|>"],
    ]
    assert BPE_ID["<|im_start|>"] not in bpe.encode(text)


def test_phi3_swallows_space_behind_special_tokens(tmp_path: Path) -> None:
    path = write(tmp_path / "phi.gguf", spm_keys(), name="Phi-3 mini")
    tokenizer = tokenizer_from_gguf(path)
    assert tokenizer.encode("<tool> \na", add_bos=False) == [SPM_ID["<tool>"], SPM_ID["▁a"]]
    ids = tokenizer.encode("<s> a", add_bos=False, parse_special=True)
    assert ids == [1, SPM_ID["▁"], SPM_ID["▁a"]]


def test_merges_into_what_is_no_token(tmp_path: Path) -> None:
    """The side "xy" is no token: it takes part in merging and is written as bytes."""
    keys = bpe_keys(merges=["x y", "h e"])
    tokenizer = tokenizer_from_gguf(write(tmp_path / "bpe.gguf", keys))
    assert tokenizer.encode("xyhe") == [BPE_ID["x"], BPE_ID["y"], BPE_ID["he"]]


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_every_pre_tokenizer_loads_and_loses_nothing(tmp_path: Path, pre: str) -> None:
    byte_tokens = [("▁", 1), *((f"<0x{byte:02X}>", 6) for byte in range(256))]
    rows = [(text, int(kind)) for text, kind in BPE]
    rows += [] if PRE_TOKENIZERS[pre].byte_encode else byte_tokens
    keys = bpe_keys(
        pre=pre, tokens=[text for text, _ in rows], token_type=[kind for _, kind in rows]
    )
    tokenizer = tokenizer_from_gguf(write(tmp_path / "bpe.gguf", keys))
    text = "Hello he's 1234567 日本語 한국, ñ é!\n\n  x\t(a) ~~ WORLD\r\n"
    if pre != "whitespace":  # it has raw spaces, which this vocabulary lacks
        assert tokenizer.decode(tokenizer.encode(text, add_bos=False)) == text


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (bpe_keys(model="bert"), "model"),
        (bpe_keys(model="t5"), "model"),
        (bpe_keys(pre="no-such-pre"), "known are .*llama-bpe"),
    ],
)
def test_unsupported_is_refused_by_name(tmp_path: Path, keys: dict, named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        tokenizer_from_gguf(write(tmp_path / "vocab.gguf", keys))


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        (spm_keys(tokens=None), "tokens"),
        (spm_keys(tokens=3), "tokens"),
        (spm_keys(scores=None), "scores"),
        (spm_keys(scores=[0.5]), "scores"),
        (spm_keys(scores=[float("nan")] * len(SPM)), "scores"),
        (spm_keys(token_type=[1, 2]), "token_type"),
        (spm_keys(token_type=["a"] * len(SPM)), "token_type"),
        (spm_keys(tokens=["a"] * len(SPM)), "tokens.*twice"),
        (spm_keys(bos_token_id=len(SPM)), "bos_token_id"),
        (spm_keys(eos_token_id="x"), "eos_token_id"),
        (spm_keys(add_bos_token=1), "add_bos_token"),
        (bpe_keys(merges=None), "merges"),
        (bpe_keys(merges=["h e", "hel"]), "merges.*item 1"),
        (bpe_keys(model=None), "model"),
        (bpe_keys(bos_token_id=None, add_bos_token=True), "bos_token_id"),
    ],
)
def test_a_broken_vocabulary_is_named(tmp_path: Path, keys: dict, key: str) -> None:
    with pytest.raises(ModelFileError, match=rf"tokenizer\.ggml\.{key}"):
        tokenizer_from_gguf(write(tmp_path / "vocab.gguf", keys))


def test_bad_arguments_are_named(bpe: Tokenizer) -> None:
    for text in (None, b"he", 3):
        with pytest.raises(RequestError, match=r"^text: "):
            bpe.encode(text)
    with pytest.raises(RequestError, match="surrogate at index 1"):
        bpe.encode("a\ud800")
    for token_id in (-1, bpe.vocab_size, "a", None, 1.5):
        with pytest.raises(RequestError, match=r"^ids: "):
            bpe.decode([token_id])
        with pytest.raises(RequestError, match=r"^token_id: "):
            bpe.token_text(token_id)
