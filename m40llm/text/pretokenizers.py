r"""How a BPE vocabulary's text is cut into words before merging: a table, one row a pre-tokenizer.

`tokenizer.ggml.pre` names the row. The patterns are applied one after another, each cutting the
pieces of the one before; matches and the gaps between them both become pieces. They are those of
llama.cpp's src/llama-vocab.cpp, rewritten for Oniguruma where its own engine reads them otherwise
(src/unicode.cpp):

- its `\p{Lu}`, `\p{Ll}` and kin mean any letter;
- its `\d`, `\w` and `\b` know ASCII only;
- where a pattern has no `\p{...}`, white space beyond ASCII matches `\s` and nothing else.
"""

from dataclasses import dataclass
from typing import Final

from m40llm.errors import UnsupportedModelError


@dataclass(frozen=True)
class PreTokenizer:
    """One row: the patterns, and what else llama.cpp derives from the name."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False  # a word that is a token is that token, whatever the merges say
    add_bos: bool = False  # where the file does not say
    byte_encode: bool = True  # GPT-2's letters for bytes; else raw UTF-8 with <0xXX> for the rest
    escape_spaces: bool = False  # U+2581 for a space, as SentencePiece has it
    newline_runs: bool = False  # a run of newlines that is a token is that token


_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_MARKS}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_MARKS}|{_SPACES}"
_CASCADE = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
_JAIS2 = (
    rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_MARKS}|\s*[\r\n]+|{_CASCADE}|\s{{1,2}}(?!\S)|\s{{1}}"
)

# Letters with case, of every script that has it.
_CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1"
    "\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd"
    "\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d"
    "\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b"
    "\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787"
    "\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_MARKS = r"!-/:-~" + "\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3001\u3002"
_DEEPSEEK_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7a3\ud7a4-\ud7ff&&[^\\s]]+"
_KANA_HAN = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_ASCII_MARK_WORD = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
_MARK_RUN = r" ?[\p{P}\p{S}]+"
_UNMARKED = r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    _KANA_HAN,
    rf"{_ASCII_MARK_WORD}|{_UNMARKED}|{_MARK_RUN}[\r\n]*|{_SPACES}",
)
_SPARK = rf"{_ASCII_MARK_WORD}|{_UNMARKED}|{_MARK_RUN}|[\r\n]|\s+(?!\S)|\s+"

# Two readings of "upper-case letters, then lower-case ones": beyond ASCII every letter is both.
_UPPER, _LOWER = r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])"
_UPPER_M, _LOWER_M = r"(?:(?=[\p{L}\p{M}])[^a-z])", r"(?:(?=[\p{L}\p{M}])[^A-Z])"
_ANY_LETTER = r"[\p{L}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"


def _cased(upper: str, lower: str, contraction: str, digits: str) -> str:
    """The o200k shape: a word is capitals then small letters, perhaps with its contraction."""
    words = (
        rf"{_LEAD}{upper}*{lower}+{contraction}|{_LEAD}{upper}+{lower}*{contraction}"  # two shapes
    )
    return rf"{words}|{digits}|{_SLASHED}|{_SPACES}"


_TEKKEN = _cased(_UPPER, _LOWER, "", r"\p{N}")
_GPT4O = _cased(_UPPER, _LOWER, f"{_CONTRACTION}?", r"\p{N}{1,3}")
_GRANITE = _cased(_UPPER_M, _LOWER_M, f"{_CONTRACTION}?", r"\p{N}{1,3}")
_TINY_AYA = (
    r"[0-9]{1,3}(?=(?:[0-9]{3})*(?![0-9A-Za-z_]))",
    _cased(_ANY_LETTER, _ANY_LETTER, f"{_CONTRACTION}?", r"\p{N}{1,3}"),
)
_YOUTU = (
    "[\uac00-\ud7a3\u3131-\u318e]+"
    "|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
    "|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    _cased(_ANY_LETTER, _ANY_LETTER, f"{_CONTRACTION}?", r"\p{N}"),
)
_HAN = (
    "[\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f"
    "\U0002b820-\U0002ceaf\U0002ceb0-\U0002ebef\uf900-\ufaff\U0002f800-\U0002fa1f]"
)
_KIMI = rf"{_HAN}+|{_LEAD}(?:(?!{_HAN})\p{{L}})+{_CONTRACTION}?|\p{{N}}{{1,3}}|{_MARKS}|{_SPACES}"
_AFMOE = (  # digits in threes counted from the right, text before them in the first group's piece
    r"[^\p{N}]*\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
    "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf"
    "\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af"
    "\u1100-\u11ff]+",
    _DEEPSEEK3[2],
)
_CHAMELEON = (
    r"<sentinel:[0-9]+>",
    r"(?:IMGIMG)(?:(?:A|B|C|D|E|F|G|H|I){1,4})Z",
    r"(?:[\t\n]|    |  )",
    r"\p{N}",
    r"[\p{P}!-/:-@\[-`{-~]",
    _GPT2,
)
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_BAILING = (
    r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])"
    rf"|{_WORD}|\p{{N}}|{_MARKS}|\s*[\r\n]|\s+(?!\S)|\s+"
)
_SEED = rf"{_CONTRACTION}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_EXAONE_MOE = (
    rf"{_CONTRACTION}|{_LEAD}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_QWEN35 = (
    rf"{_CONTRACTION}|{_LEAD}[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_MINICPM5 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}+|{_MARKS}|{_SPACES}"
_LINES = r"[^\n]+|[\n]+"

_DIGIT_GPT2 = PreTokenizer((r"\p{N}", _GPT2))
_WHOLE_GPT2 = PreTokenizer((_GPT2,))
_DEFAULT = PreTokenizer((r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"))

_ROWS: Final[dict[str, PreTokenizer]] = {
    "default": _DEFAULT,
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": PreTokenizer(
        (_LLAMA3,), ignore_merges=True, add_bos=True
    ),
    "dbrx smaug-bpe glm4 chatglm-bpe": PreTokenizer((_LLAMA3,)),
    "jais-2": PreTokenizer((_JAIS2,)),
    "deepseek-llm": PreTokenizer(
        (
            r"[\r\n]",
            rf"\s?[{_CASED}]+",
            rf"\s?[{_DEEPSEEK_MARKS}]+",
            r"\s+\z",
            _DEEPSEEK_CJK,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": PreTokenizer(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, r"\p{N}")
    ),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": PreTokenizer(_DEEPSEEK3),
    "spark2_5": PreTokenizer((r"\p{N}{1,3}", _KANA_HAN, _SPARK, r"\p{N}")),
    "youtu": PreTokenizer(_YOUTU, ignore_merges=True),
    "falcon": PreTokenizer((r"[\p{P}$+<=>^~|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2": _DIGIT_GPT2,
    "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert": (
        _WHOLE_GPT2
    ),
    "jina-v1-en jina-v2-code roberta-bpe exaone4": _WHOLE_GPT2,
    "mpt olmo jais trillion granite-docling": _WHOLE_GPT2,
    "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2": PreTokenizer(
        (_QWEN2,)
    ),
    "qwen35": PreTokenizer((_QWEN35,)),
    "poro-chat bloom gpt3-finnish": PreTokenizer((_BLOOM,)),
    "viking": PreTokenizer((_BLOOM, r"\p{N}")),
    "tekken": PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True),
    "chameleon": PreTokenizer(_CHAMELEON, add_bos=True),
    "gpt-4o llama4 kanana2 talkie minimax-m2": PreTokenizer((_GPT4O,)),
    "granite-embed-multi-97m": PreTokenizer((_GRANITE,), ignore_merges=True),
    "tiny_aya cohere2moe": PreTokenizer(_TINY_AYA),
    "kimi-k2": PreTokenizer((_KIMI,)),
    "superbpe": PreTokenizer((r"\p{N}+", r"(?=(?:[0-9]{3})+(?![0-9]))")),
    "bailingmoe bailingmoe2 llada-moe": PreTokenizer((_BAILING,)),
    "seed-coder": PreTokenizer((_SEED,)),
    "ufakzeka": PreTokenizer((rf"{_WORD}|\p{{N}}|{_MARKS}|{_SPACES}",)),
    "afmoe": PreTokenizer(_AFMOE),
    "laguna": PreTokenizer((_LINES, _QWEN2)),
    "exaone-moe": PreTokenizer((_EXAONE_MOE,)),
    "minicpm5": PreTokenizer((r"\p{N}{1,3}", _MINICPM5), ignore_merges=True),
    "gemma4 granite-embed-multi-311m": PreTokenizer(
        (_LINES,), add_bos=True, byte_encode=False, escape_spaces=True, newline_runs=True
    ),
    "sarvam-moe": PreTokenizer((_LINES,), byte_encode=False, escape_spaces=True),
    "whitespace": PreTokenizer((r"\S+",), byte_encode=False),
}
PRE_TOKENIZERS: Final = {name: row for names, row in _ROWS.items() for name in names.split()}


def pre_tokenizer(name: str) -> PreTokenizer:
    """The row of `tokenizer.ggml.pre`; an empty name is "default". Refuses unknown names."""
    row = PRE_TOKENIZERS.get(name or "default")
    if row is None:
        raise UnsupportedModelError(
            f"key 'tokenizer.ggml.pre': unknown pre-tokenizer {name!r}, "
            f"known are {', '.join(sorted(PRE_TOKENIZERS))}"
        )
    return row
