"""What the engine needs of a tokenizer: Harmony's, or a SentencePiece model's in raw mode.

A folder with a tokenizer.model is SentencePiece; every other folder speaks Harmony, and its
tokenizer.json, if there is one, must agree with the package's vocabulary. That a file agrees is
remembered by its sha256, so that it is compared once.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import importlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from gptoss_mlx.config import ModelConfig
from gptoss_mlx.errors import VocabularyError
from gptoss_mlx.harmony.encoding import (
    ORDINARY_TOKENS,
    STOP_IDS,
    VOCAB_SIZE,
    Encoding,
    special_text,
)
from gptoss_mlx.harmony.export import ordinary_tokens
from gptoss_mlx.paths import cache_folder

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
        """What is held when nothing follows: U+FFFD for an incomplete character, else ""."""
        return self._decoder.decode(b"", True)


class Tokenizer(Protocol):
    """A tokenizer as the engine sees it. `harmony` is None if there is only raw completion."""

    @property
    def stop_ids(self) -> frozenset[int]: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def harmony(self) -> Encoding | None: ...

    def encode(self, text: str, most: float = math.inf) -> list[int]:
        """The ids of a raw prompt. May raise ContextError if there are more than `most`."""
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

    def encode(self, text: str, most: float = math.inf) -> list[int]:
        return self.harmony.encode_special(text, most)

    def decoder(self) -> Decoder:
        return Decoder(self.harmony.token_bytes)


class SentencePieceTokenizer:
    """A SentencePiece model. Raises VocabularyError if the file is none.

    A prompt begins with the model's beginning-of-text token, if it has one and
    tokenizer_config.json beside it does not say `"add_bos_token": false`.
    """

    harmony = None

    def __init__(self, path: Path, stop_ids: frozenset[int] = frozenset()) -> None:
        library = importlib.import_module("sentencepiece")
        self._model: Any = library.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(path.read_bytes())
        except (OSError, RuntimeError, ValueError) as error:
            raise VocabularyError(f"{path}: not a SentencePiece model") from error
        self.vocab_size = int(self._model.vocab_size())
        end = int(self._model.eos_id())
        self.stop_ids = stop_ids | ({end} if end >= 0 else set())
        begin = int(self._model.bos_id())
        settings = path.with_name("tokenizer_config.json")
        adds = _read_json(settings).get("add_bos_token", True) if settings.is_file() else True
        self._prefix = [begin] if begin >= 0 and adds else []

    def encode(self, text: str, most: float = math.inf) -> list[int]:
        ids: list[int] = self._model.encode(text)
        return self._prefix + ids

    def decoder(self) -> Decoder:
        return Decoder(self._bytes)

    def _bytes(self, id: int) -> bytes:
        if not 0 <= id < self.vocab_size or self._model.is_control(id):
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
    path = folder / "tokenizer.model"
    if path.is_file():
        tokenizer = SentencePieceTokenizer(path, frozenset({config.eos_token_id}))
    else:
        path = folder / "tokenizer.json"
        if path.is_file():
            _check_once(path)
        tokenizer = HarmonyTokenizer()
    if tokenizer.vocab_size > config.vocab_size:
        raise VocabularyError(
            f"{path}: {tokenizer.vocab_size} tokens, but the model has {config.vocab_size}"
        )
    return tokenizer


def _check_once(path: Path) -> None:
    """Compare, unless a file of the same sha256 has agreed before."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise VocabularyError(f"{path}: cannot be read: {error.strerror}") from error
    remembered = cache_folder() / "tokenizers" / hashlib.sha256(content).hexdigest()
    if remembered.is_file():
        return
    check_vocabulary(path, _read_json(path, content))
    # a cache that cannot be written only costs the comparison next time
    with contextlib.suppress(OSError):
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
            f"{path}: token {text!r} has id {vocab[text]}, but {expected[text]} in o200k_harmony"
        )
    for token in added:
        if not isinstance(token, Mapping):
            raise VocabularyError(f"{path}: added token {token!r} is no object")
        specials[str(token.get("content"))] = token.get("id")
    _check_specials(path, specials)


def _check_specials(path: Path, specials: Mapping[str, Any]) -> None:
    for text, id in specials.items():
        known = isinstance(id, int) and ORDINARY_TOKENS <= id < VOCAB_SIZE
        # o200k_base calls this one by name, Harmony does not use it
        if not known or text not in (special_text(id), "<|endofprompt|>" if id == 200018 else ""):
            raise VocabularyError(f"{path}: special token {text!r} has id {id}, not as in Harmony")
    for id in _REQUIRED:
        if special_text(id) not in specials:
            raise VocabularyError(f"{path}: special token {special_text(id)!r} is missing")


def _read_json(path: Path, content: bytes | None = None) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes() if content is None else content)
    except (OSError, ValueError, RecursionError) as error:
        raise VocabularyError(f"{path}: not JSON: {error}") from error
    if not isinstance(data, dict):
        raise VocabularyError(f"{path}: not a JSON object")
    return data
