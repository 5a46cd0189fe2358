"""The vocabulary of a model file, checked, with the token attributes that llama.cpp derives.

A GGUF file gives each token a text, a type and (for spm) a score. llama.cpp then changes some
attributes by the token's text or the model's name (llama_vocab::impl::load in
src/llama-vocab.cpp); ids and stop tokens depend on it, so the same is done here.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from m40llm.errors import ModelFileError, UnsupportedModelError
from m40llm.gguf import GGUFFile
from m40llm.text import known_tokens
from m40llm.text.known_templates import KNOWN_TEMPLATES
from m40llm.text.pretokenizers import PreTokenizer, pre_tokenizer

UNKNOWN, UNUSED, NORMAL, CONTROL, USER_DEFINED, BYTE, LSTRIP, RSTRIP = (1 << n for n in range(8))
SPECIAL: Final = UNKNOWN | CONTROL  # shown as their text or skipped, matched only on request
MATCHED: Final = SPECIAL | USER_DEFINED  # looked for in the text before it is tokenized

_ATTR_OF_TYPE: Final = np.array([0, NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE], np.int64)
_KINDS: Final = {"llama": "spm", "gpt2": "bpe", "gemma4": "bpe"}
_REFUSED: Final = {
    "bert": "WordPiece", "t5": "unigram", "rwkv": "RWKV", "plamo2": "PLaMo-2",
    "hybriddna": "HybridDNA", "whitespace": "whitespace", "none": "no", "no_vocab": "no",
}  # fmt: skip
_KEY: Final = "tokenizer.ggml."


@dataclass(frozen=True)
class Vocab:
    """Tokens by id with their attributes, and the ids that have a role; ids are checked."""

    kind: str  # "spm" or "bpe"
    tokens: list[str]
    ids: dict[str, int]  # text -> id
    attrs: NDArray[np.int64]  # [vocab_size], bits of the constants above
    roles: dict[str, int | None]  # bos, eos, eot, eom, unk, pad, fim_*
    stop_ids: frozenset[int]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    pre: PreTokenizer
    scores: NDArray[np.float32] | None  # [vocab_size], spm only
    merges: list[str]  # "left right" by rank, bpe only
    chat_template: str | None
    template_of: str | None  # the architecture that it is known for, where the file has none
    tool_template: str | None  # another, for chats with tools

    def where(self, mask: int) -> list[int]:
        """Ids of the tokens that have any of the attributes."""
        return [int(token_id) for token_id in np.flatnonzero(self.attrs & mask)]


def read_vocab(file: GGUFFile) -> Vocab:
    """Reads and checks every key of the tokenizer; ModelFileError names the one that is wrong."""
    meta = file.metadata
    model = meta.get_str(_KEY + "model")
    kind = _kind_of(model)
    pre = pre_tokenizer("default")
    if kind == "bpe":
        pre = pre_tokenizer("gemma4" if model == "gemma4" else meta.get_str(_KEY + "pre", ""))
    tokens, ids = _read_tokens(file)
    attrs = _read_attrs(file, len(tokens))
    roles = _read_roles(file, kind, len(tokens))
    found_by_text = known_tokens.assign_roles(roles, ids)
    stop_ids = _derive_attrs(attrs, ids, roles, found_by_text)
    _strip_attrs(attrs, ids, meta.get_str("general.name", ""), meta.get_str(_KEY + "pre", ""))
    add_bos = meta.get_bool(_KEY + "add_bos_token", kind == "spm" or pre.add_bos)
    add_eos = meta.get_bool(_KEY + "add_eos_token", False)
    for flag, role in ((add_bos, "bos"), (add_eos, "eos")):
        if flag and roles[role] is None:
            raise ModelFileError(f"key '{_KEY}{role}_token_id': missing, though it is to be added")
    return Vocab(
        kind=kind,
        tokens=tokens,
        ids=ids,
        attrs=attrs,
        roles=roles,
        stop_ids=stop_ids,
        add_bos=add_bos or pre.newline_runs,  # llama.cpp overrides Gemma 4's files
        add_eos=add_eos,
        add_space_prefix=kind == "spm" and meta.get_bool(_KEY + "add_space_prefix", True),
        pre=pre,
        scores=_read_scores(file, len(tokens)) if kind == "spm" else None,
        merges=meta.get_strings(_KEY + "merges") if kind == "bpe" else [],
        **_read_template(file, ids),
    )


def _read_template(file: GGUFFile, ids: dict[str, int]) -> dict[str, str | None]:
    """The file's, and the one that llama.cpp's converter calls tool_use; else the one that its
    architecture is known for, if the tokens are there."""
    source = file.metadata.get_str("tokenizer.chat_template", None)
    arch = file.metadata.get_str("general.architecture", "")
    if source is None and arch in KNOWN_TEMPLATES:
        token, known = KNOWN_TEMPLATES[arch]
        if token in ids:
            return {"chat_template": known, "template_of": arch, "tool_template": None}
    for_tools = file.metadata.get_str("tokenizer.chat_template.tool_use", None)
    return {"chat_template": source, "template_of": None, "tool_template": for_tools}


def _kind_of(model: str) -> str:
    if model not in _KINDS:
        name = _REFUSED.get(model, "an unknown")
        raise UnsupportedModelError(
            f"key '{_KEY}model': {model!r} ({name} tokenizer) is not supported, "
            f"only {', '.join(_KINDS)} are"
        )
    return _KINDS[model]


def _read_tokens(file: GGUFFile) -> tuple[list[str], dict[str, int]]:
    tokens = file.metadata.get_strings(_KEY + "tokens")
    if not tokens:
        raise ModelFileError(f"key '{_KEY}tokens': expected at least one token, got none")
    if "" in tokens:  # llama.cpp names them so
        tokens = [text or f"[EMPTY_{token_id}]" for token_id, text in enumerate(tokens)]
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(ids) < len(tokens):
        first = next(i for i, text in enumerate(tokens) if ids[text] != i)
        raise ModelFileError(
            f"key '{_KEY}tokens': {tokens[first]!r} occurs twice, ids {first}, {ids[tokens[first]]}"
        )
    return tokens, ids


def _read_attrs(file: GGUFFile, n_tokens: int) -> NDArray[np.int64]:
    types = file.metadata.get_ints(_KEY + "token_type", None)
    if types is None:
        return np.full(n_tokens, NORMAL, np.int64)
    _check_length("token_type", len(types), n_tokens)
    types = types[:n_tokens]
    known = (types >= 0) & (types < len(_ATTR_OF_TYPE))
    return np.where(known, _ATTR_OF_TYPE[np.where(known, types, 0)], 0)


def _read_scores(file: GGUFFile, n_tokens: int) -> NDArray[np.float32]:
    scores = file.metadata.get_floats(_KEY + "scores")
    _check_length("scores", len(scores), n_tokens)
    return scores[:n_tokens].astype(np.float32)


def _check_length(name: str, n_items: int, n_tokens: int) -> None:
    if n_items < n_tokens:
        raise ModelFileError(
            f"key '{_KEY}{name}': expected {n_tokens} items, one a token, got {n_items}"
        )


def _read_roles(file: GGUFFile, kind: str, n_tokens: int) -> dict[str, int | None]:
    """The ids that the file names, else SentencePiece's own where the vocabulary has them.

    llama.cpp takes 11 for a BPE file that names no BOS or EOS (Falcon's); here it has none.
    """
    roles: dict[str, int | None] = dict.fromkeys(known_tokens.ROLE_KEYS.values())
    if kind == "spm":
        roles |= {r: i for i, r in enumerate(("unk", "bos", "eos")) if i < n_tokens}
    for key, role in known_tokens.ROLE_KEYS.items():
        roles[role] = file.metadata.get_int(
            _KEY + key, roles[role], minimum=0, maximum=n_tokens - 1
        )
    return roles


def _derive_attrs(
    attrs: NDArray[np.int64],
    ids: dict[str, int],
    roles: dict[str, int | None],
    found_by_text: set[int],
) -> frozenset[int]:
    """Marks control-looking tokens as control; returns the ids that end a generation."""
    stop_ids = {i for role in known_tokens.STOP_ROLES if (i := roles[role]) is not None}
    known_stops = set(_present(known_tokens.STOP_TEXTS, ids))
    stop_ids |= known_stops
    for token_id in found_by_text | known_stops:
        attrs[token_id] |= CONTROL
    for token_id in _present(known_tokens.ALWAYS_SHOWN, ids):
        attrs[token_id] = USER_DEFINED
    for texts, loser, attr in known_tokens.NOT_STOPS:
        present = {text for text in texts if ids.get(text) in stop_ids}
        if present == set(texts) and ids.get(loser) in stop_ids:
            stop_ids.remove(ids[loser])
            attrs[ids[loser]] = USER_DEFINED if attr == "user-defined" else NORMAL
    return frozenset(stop_ids)


def _present(texts: Iterable[str], ids: dict[str, int]) -> list[int]:
    return [ids[text] for text in texts if text in ids]


def _strip_attrs(attrs: NDArray[np.int64], ids: dict[str, int], name: str, pre: str) -> None:
    """White space beside a special token that the model's own tokenizer swallows, by name."""
    name = name.lower()
    if any(word in pre for word in ("jina-v2-de", "jina-v2-es", "jina-v2-code")):
        for token_id in _present(["<mask>"], ids):
            attrs[token_id] |= LSTRIP
    elif "phi-3" in name or "phi3" in name:
        attrs[(attrs & MATCHED) != 0] |= RSTRIP
        attrs[_present(["</s>"], ids)] |= RSTRIP
        attrs[_present(["<unk>", "<s>", "<|endoftext|>"], ids)] &= ~RSTRIP
    elif "modern-bert" in name:
        for token_id in _present(["[MASK]"], ids):
            attrs[token_id] |= LSTRIP
