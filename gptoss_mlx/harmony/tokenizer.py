"""The engine's tokenizers: Harmony's, or a SentencePiece model's in raw mode.

A folder with a tokenizer.model is SentencePiece; every other folder speaks Harmony, and its
tokenizer.json, if there is one, must agree with the package's vocabulary. That a file agrees is
remembered by its sha256, so that it is compared once.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import importlib
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from llguidance import LLTokenizer

from gptoss_mlx.errors import CheckpointError, VocabularyError
from gptoss_mlx.files.jsonfile import JSON_LIMIT, parse_json, shown
from gptoss_mlx.files.paths import cache_folder
from gptoss_mlx.files.regular import is_named, read_regular
from gptoss_mlx.harmony.encoding import (
    ORDINARY_TOKENS,
    STOP_IDS,
    VOCAB_SIZE,
    Encoding,
    special_text,
    with_whole_characters,
)
from gptoss_mlx.harmony.export import ordinary_tokens
from gptoss_mlx.harmony.trie import token_trie
from gptoss_mlx.spec.config import ModelConfig

_JSON_LIMIT = 40 << 20
"""Bytes of a tokenizer.json; the released one has 28 million."""
_VALUES_LIMIT = 2 << 20
"""Values in a tokenizer.json, 100 bytes each once parsed; the released one has 1.6 million."""
_MODEL_LIMIT = 32 << 20
"""Bytes of a tokenizer.model; those of 262,000 pieces have 5 million."""
_REQUIRED = (*sorted(STOP_IDS), 200003, 200005, 200006, 200007, 200008)
_SPACE = "\u2581"  # SentencePiece's letter for a space


class Decoder:
    """Token ids to text, one at a time; the bytes of an incomplete character are held."""

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """The text this token completes; "" while a character is incomplete."""
        return self._decoder.decode(self._bytes_of(id))

    def flush(self) -> str:
        """The text held at the end of a stream: U+FFFD for an incomplete character, else ""."""
        return self._decoder.decode(b"", True)


class Tokenizer(Protocol):
    """A tokenizer as the engine sees it. `harmony` is None if there is only raw completion."""

    @property
    def stop_ids(self) -> frozenset[int]: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def harmony(self) -> Encoding | None: ...

    @property
    def trie(self) -> LLTokenizer:
        """The tokens that text is made of, for grammars; built when it is first asked for."""
        ...

    def encode(self, text: str, most: float = math.inf) -> list[int]:
        """The ids of a raw prompt. May raise ContextError if there are more than `most`."""
        ...

    def token_bytes(self, id: int) -> bytes:
        """The bytes one token stands for; they need not be whole characters."""
        ...

    def decoder(self) -> Decoder:
        """A fresh incremental decoder."""
        ...


class HarmonyTokenizer:
    """o200k_harmony; in a raw prompt the texts of special tokens stand for the tokens."""

    stop_ids = STOP_IDS
    vocab_size = VOCAB_SIZE

    def __init__(self, encoding: Encoding | None = None) -> None:
        self.harmony = encoding if encoding is not None else Encoding()

    @property
    def trie(self) -> LLTokenizer:
        return self.harmony.trie

    def encode(self, text: str, most: float = math.inf) -> list[int]:
        return self.harmony.encode_special(text, most)

    def token_bytes(self, id: int) -> bytes:
        return self.harmony.token_bytes(id)

    def decoder(self) -> Decoder:
        return Decoder(self.token_bytes)


class SentencePieceTokenizer:
    """A SentencePiece model. Raises VocabularyError if the file is not one.

    A prompt begins with the model's beginning-of-text token, if it has one and
    tokenizer_config.json beside it does not say `"add_bos_token": false`.
    """

    harmony = None

    def __init__(self, path: Path, stop_ids: frozenset[int] = frozenset()) -> None:
        library = importlib.import_module("sentencepiece")
        self._model: Any = library.SentencePieceProcessor()
        data = _content(path, _MODEL_LIMIT)
        try:
            self._model.LoadFromSerializedProto(data)
            self.vocab_size = int(self._model.vocab_size())
            self._pieces = [self._bytes_of(id) for id in range(self.vocab_size)]
        except (RuntimeError, ValueError) as error:
            raise VocabularyError(f"{path}: not a SentencePiece model") from error
        end = int(self._model.eos_id())
        self.stop_ids = stop_ids | ({end} if end >= 0 else set())
        begin = int(self._model.bos_id())
        adds = _adds_begin(path.with_name("tokenizer_config.json"))
        self._prefix = [begin] if begin >= 0 and adds else []

    @cached_property
    def trie(self) -> LLTokenizer:
        return token_trie(self._pieces)

    def encode(self, text: str, most: float = math.inf) -> list[int]:
        ids: list[int] = self._model.encode(with_whole_characters(text))
        return self._prefix + ids

    def decoder(self) -> Decoder:
        return Decoder(self.token_bytes)

    def token_bytes(self, id: int) -> bytes:
        return self._pieces[id] if 0 <= id < self.vocab_size else b""

    def _bytes_of(self, id: int) -> bytes:
        if self._model.is_control(id):
            return b""
        piece: str = self._model.id_to_piece(id)
        if self._model.is_byte(id):
            return bytes([int(piece[3:5], 16)])  # <0x0A>
        return piece.replace(_SPACE, " ").encode()


def load_tokenizer(folder: Path, config: ModelConfig) -> Tokenizer:
    """The tokenizer of a checkpoint's folder.

    Raises VocabularyError if its files are broken, disagree with o200k_harmony, or have more
    tokens than the model.
    """
    tokenizer: Tokenizer
    where = folder / "tokenizer.model"
    if is_named(where):
        tokenizer = SentencePieceTokenizer(where, frozenset({config.eos_token_id}))
        source = str(where)
    elif is_named(where := folder / "tokenizer.json"):
        _check_once(where)
        tokenizer, source = HarmonyTokenizer(), str(where)
    else:
        tokenizer = HarmonyTokenizer()
        source = f"{folder}: holds no tokenizer file, which means Harmony's vocabulary"
    if tokenizer.vocab_size > config.vocab_size:
        raise VocabularyError(
            f"{source}: {tokenizer.vocab_size} tokens, but the model has {config.vocab_size}"
        )
    return tokenizer


def _check_once(path: Path) -> None:
    """Check a tokenizer.json's vocabulary, unless a file of the same sha256 has passed before."""
    content = _content(path, _JSON_LIMIT)
    digest = hashlib.sha256(content).hexdigest()
    # a cache that cannot be read or written only costs the comparison
    with contextlib.suppress(OSError):
        if (cache_folder() / "tokenizers" / digest).is_file():
            return
    if sum(content.count(mark) for mark in b"[{,") > _VALUES_LIMIT:
        raise VocabularyError(f"{path}: holds more than {_VALUES_LIMIT:,} values, the limit for it")
    check_vocabulary(path, _parsed(path, content))
    with contextlib.suppress(OSError):
        remembered = cache_folder() / "tokenizers" / digest
        remembered.parent.mkdir(parents=True, exist_ok=True)
        remembered.touch()


def check_vocabulary(path: Path, data: Mapping[str, Any]) -> None:
    """Raise VocabularyError unless a tokenizer.json's content has exactly o200k_harmony's tokens.

    Reserved special tokens may be missing, ordinary ones and those of Harmony may not.
    `path` is only named in the error.
    """
    model, added = data.get("model"), data.get("added_tokens")
    vocab = model.get("vocab") if isinstance(model, Mapping) else None
    if not isinstance(vocab, dict) or not isinstance(added, list):
        raise VocabularyError(f"{path}: no BPE vocabulary with added tokens")
    tokens = ordinary_tokens()
    expected = {token: id for id, token in enumerate(tokens)}
    specials = {text: id for text, id in vocab.items() if text not in expected}
    if len(vocab) - len(specials) < len(tokens):
        missing = next(token for token in tokens if token not in vocab)
        raise VocabularyError(f"{path}: token {missing!r} (id {expected[missing]}) is missing")
    if any(vocab[text] != id for text, id in expected.items()):
        text = next(text for text, id in expected.items() if vocab[text] != id)
        raise VocabularyError(
            f"{path}: token {shown(text)} has id {shown(vocab[text])}, but {expected[text]} in"
            " o200k_harmony"
        )
    for token in added:
        content = token.get("content") if isinstance(token, Mapping) else None
        if not isinstance(content, str):
            raise VocabularyError(f"{path}: added token {shown(token)} has no text as content")
        specials[content] = token.get("id")
    _check_specials(path, specials)


def _check_specials(path: Path, specials: Mapping[str, Any]) -> None:
    for text, id in specials.items():
        known = type(id) is int and ORDINARY_TOKENS <= id < VOCAB_SIZE
        # o200k_base calls this one by name, Harmony does not use it
        if not known or text not in (special_text(id), "<|endofprompt|>" if id == 200018 else ""):
            raise VocabularyError(
                f"{path}: special token {shown(text)} has id {shown(id)}, not as in Harmony"
            )
    for id in _REQUIRED:
        if special_text(id) not in specials:
            raise VocabularyError(f"{path}: special token {special_text(id)!r} is missing")


def _adds_begin(settings: Path) -> bool:
    """Whether a tokenizer_config.json asks for a beginning-of-text token; by default true."""
    if not is_named(settings):
        return True
    adds = _parsed(settings, _content(settings, JSON_LIMIT)).get("add_bos_token")
    if not isinstance(adds, bool | None):
        raise VocabularyError(f"{settings}: add_bos_token is {shown(adds)}, not true or false")
    return adds is not False


def _content(path: Path, limit: int) -> bytes:
    try:
        return read_regular(path, limit)
    except OSError as error:
        raise VocabularyError(f"{path}: cannot be read: {error.strerror}") from error


def _parsed(path: Path, content: bytes) -> dict[str, Any]:
    try:
        return parse_json(content, str(path))
    except CheckpointError as error:
        raise VocabularyError(str(error)) from error
