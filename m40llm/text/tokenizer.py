"""Text to token ids and back, as llama.cpp does it for the same file."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from operator import index
from typing import TYPE_CHECKING, Any, Protocol

from m40llm.errors import RequestError
from m40llm.text.partition import partition, special_tokens
from m40llm.text.stream import StreamDecoder
from m40llm.text.vocab import MATCHED, SPECIAL, Vocab

if TYPE_CHECKING:
    from m40llm.text.chat_template import ChatTemplate

Message = Mapping[str, Any]  # {"role": ..., "content": ...} and what else the template reads


class Encoder(Protocol):
    """What tells one kind of vocabulary from another: SpmEncoder, BpeEncoder."""

    def encode(self, text: str) -> list[int]: ...
    def token_bytes(self, token_id: int) -> bytes: ...


class Tokenizer:
    """The tokenizer of one model file; immutable and safe to share between threads.

    vocab_size                               number of tokens; ids run from 0
    bos_id, eos_id, eot_id, unk_id, pad_id   int, or None where the file has no such token
    stop_ids                                 every id that ends a generation
    add_bos, add_eos                         what `encode` does by default
    chat_template                            Jinja source, or None
    tool_template                            None; or the source for chats with tools
    template_of                              None; or the architecture that the template is known
                                             for, the file having none
    """

    def __init__(self, vocab: Vocab, encoder: Encoder) -> None:
        self._vocab = vocab
        self._encoder = encoder
        self._specials = special_tokens(vocab)
        self.vocab_size = len(vocab.tokens)
        self.bos_id = vocab.roles["bos"]
        self.eos_id = vocab.roles["eos"]
        self.eot_id = vocab.roles["eot"]
        self.unk_id = vocab.roles["unk"]
        self.pad_id = vocab.roles["pad"]
        self.stop_ids = vocab.stop_ids
        self.add_bos = vocab.add_bos
        self.add_eos = vocab.add_eos
        self.chat_template, self.template_of = vocab.chat_template, vocab.template_of
        self.tool_template = vocab.tool_template

    def __repr__(self) -> str:
        return f"<Tokenizer: {self._vocab.kind}, {self.vocab_size} tokens>"

    def token_text(self, token_id: int) -> str:
        """The token as the file spells it, e.g. "Ġthe" or "▁the"."""
        return self._vocab.tokens[self._checked(token_id, "token_id")]

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes that the token stands for; they may be part of a character."""
        return self._encoder.token_bytes(self._checked(token_id, "token_id"))

    def ids_containing(self, texts: Sequence[str]) -> tuple[int, ...]:
        """Every token in whose bytes one of the texts occurs."""
        wanted = [text.encode("utf-8") for text in texts]
        return tuple(
            token_id
            for token_id, spelled in enumerate(self._all_bytes)
            if any(text in spelled for text in wanted)
        )

    @cached_property
    def _all_bytes(self) -> list[bytes]:
        return [self._encoder.token_bytes(token_id) for token_id in range(self.vocab_size)]

    def is_special(self, token_id: int) -> bool:
        """Whether the token is a control or unknown token, which `skip_special` leaves out."""
        return bool(self._vocab.attrs[self._checked(token_id, "token_id")] & SPECIAL)

    @property
    def special_ids(self) -> list[int]:
        """All of these tokens, ascending."""
        return self._vocab.where(SPECIAL)

    def encode(
        self, text: str, add_bos: bool | None = None, parse_special: bool = False
    ) -> list[int]:
        """The text's ids.

        `add_bos`: None adds BOS (and EOS) where the file says so; True and False speak for BOS.
        `parse_special`: the text of a control token becomes that token. User-defined tokens are
        always found. RequestError where the text is no str, holds a lone surrogate, or BOS is
        asked for and the file has none.
        """
        _check_text(text)
        ids = self._bos() if (self.add_bos if add_bos is None else add_bos) else []
        after_special = True
        for fragment in partition(text, self._specials, parse_special):
            if isinstance(fragment, str):
                space = " " if self._vocab.add_space_prefix and after_special else ""
                ids += self._encoder.encode(space + fragment)
            else:
                ids.append(fragment)
            after_special = not isinstance(fragment, str)
        if add_bos is None and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def encode_inside(self, text: str) -> list[int]:
        """Ids whose bytes are those of the text, as it stands within another: no BOS, no space
        put in, no control token; user-defined tokens are found."""
        _check_text(text)
        exact = [s for s in self._specials if not (s.on_request or s.lstrip or s.rstrip)]
        ids: list[int] = []
        for fragment in partition(text, exact, parse_special=False):
            ids += self._encoder.encode(fragment) if isinstance(fragment, str) else [fragment]
        return ids

    def decode(
        self, ids: Sequence[int], skip_special: bool = False, continuing: bool = False
    ) -> str:
        """The text of the ids; bytes that are no UTF-8 become U+FFFD.

        Special tokens show as their text unless skipped. `continuing`: see `stream_decoder`.
        """
        decoder = self.stream_decoder(skip_special, continuing)
        return "".join([*(decoder.push(token_id) for token_id in ids), decoder.flush()])

    def stream_decoder(self, skip_special: bool = True, continuing: bool = False) -> StreamDecoder:
        """Decodes one token at a time; the pieces together equal `decode` of all.

        An spm tokenizer puts a space before a text and after every special token; decoding takes
        it away again. `continuing` keeps the first: for ids that go on from other text.
        """
        return StreamDecoder(
            self._piece, skip_special, self._vocab.add_space_prefix, at_start=not continuing
        )

    def apply_chat_template(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The prompt that the file's template makes of the messages, or with tools, its second
        one for these.

        messages    [{"role": "user", "content": "..."}, ...]
        variables   what else the template reads: tools, documents, enable_thinking, ...

        RequestError: no template, malformed messages, or the template itself refuses them (its
        words). ModelFileError: the template is broken, or was stopped for what it did.
        """
        has_own = self.tool_template is not None and variables.get("tools")
        template = self._templates.get("tools" if has_own else "chat")
        if template is None:
            raise RequestError(
                "messages: the model file has no chat template (key 'tokenizer.chat_template'); "
                "generate() takes raw prompts"
            )
        return template.render(messages, add_generation_prompt, variables)

    def encode_chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        """Ids of the chat prompt, special tokens parsed, with one BOS where the file adds it."""
        prompt = self.apply_chat_template(messages, add_generation_prompt, **variables)
        ids = self.encode(prompt, add_bos=False, parse_special=True)
        if self.add_bos and ids[:1] != [self.bos_id]:
            ids = self._bos() + ids
        return ids

    @cached_property
    def _templates(self) -> "dict[str, ChatTemplate]":
        from m40llm.text.chat_template import ChatTemplate  # Jinja loads with the first chat

        names = {"bos": self.bos_id, "eos": self.eos_id, "unk": self.unk_id, "pad": self.pad_id}
        tokens = self._vocab.tokens
        special = {f"{n}_token": "" if i is None else tokens[i] for n, i in names.items()}
        sources = {"chat": self.chat_template, "tools": self.tool_template}
        return {n: ChatTemplate(s, special) for n, s in sources.items() if s is not None}

    def _bos(self) -> list[int]:
        if self.bos_id is None:
            raise RequestError("add_bos: the model file names no BOS token")
        return [self.bos_id]

    def _piece(self, token_id: int) -> tuple[bytes, bool, bool]:
        """Bytes; whether `skip_special` leaves it out; whether a space was put behind it."""
        token_id = self._checked(token_id, "ids")
        attr = int(self._vocab.attrs[token_id])
        return self._encoder.token_bytes(token_id), bool(attr & SPECIAL), bool(attr & MATCHED)

    def _checked(self, token_id: int, name: str) -> int:
        try:
            value = index(token_id)
        except TypeError:
            value = -1
        if not 0 <= value < self.vocab_size:
            raise RequestError(
                f"{name}: expected ids from 0 to {self.vocab_size - 1}, got {token_id!r}"
            )
        return value


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise RequestError(f"text: expected str, got {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            f"text: a lone surrogate at index {error.start} cannot be encoded"
        ) from None
