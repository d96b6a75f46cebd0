"""The encoding against the library it stands on and the vocabulary file."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptoss_mlx.errors import VocabularyError
from gptoss_mlx.harmony import Encoding
from gptoss_mlx.harmony import encoding as module
from gptoss_mlx.harmony.encoding import VOCAB_SIZE, VOCABULARY, VOCABULARY_SHA256

TEXTS = [
    "",
    "Hello, world",
    "naïve Ünïcode 你好 👍🏽",
    "  \n\n\ttabs",
    "def f(x):\n    return x\r\n",
]


def test_shipped_vocabulary_is_the_released_one() -> None:
    assert hashlib.sha256(VOCABULARY.read_bytes()).hexdigest() == VOCABULARY_SHA256


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_encoding_and_decoding(encoding: Encoding, text: str) -> None:
    assert encoding.decode(encoding.encode(text)) == text


def test_every_token_decodes_as_in_the_library(encoding: Encoding) -> None:
    ids = range(VOCAB_SIZE)
    assert encoding.decode(ids) == encoding.library.decode(list(ids))


def test_special_texts_are_ordinary_text_unless_asked_for(encoding: Encoding) -> None:
    assert encoding.encode_special("<|start|>") == [200006]
    assert encoding.encode_special("<|reserved_201087|>") == [201087]
    ordinary = encoding.encode("<|start|><|end|>")
    assert max(ordinary) < 199998
    assert encoding.decode(ordinary) == "<|start|><|end|>"


def test_lone_surrogates_become_replacement_characters(encoding: Encoding) -> None:
    assert encoding.decode(encoding.encode("a\ud800b")) == "a\ufffdb"


def test_ids_beyond_the_vocabulary_have_a_text(encoding: Encoding) -> None:
    assert encoding.decode([VOCAB_SIZE, -1]) == "<|unknown_201088|><|unknown_-1|>"


def test_loading_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_ENCODINGS_BASE", "elsewhere")
    Encoding()
    assert os.environ["TIKTOKEN_ENCODINGS_BASE"] == "elsewhere"
    monkeypatch.delenv("TIKTOKEN_ENCODINGS_BASE")
    Encoding()
    assert "TIKTOKEN_ENCODINGS_BASE" not in os.environ


def test_a_missing_vocabulary_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "DATA", tmp_path)
    monkeypatch.setattr(module, "VOCABULARY", tmp_path / "o200k_base.tiktoken")
    with pytest.raises(VocabularyError, match=r"o200k_base\.tiktoken: cannot load"):
        Encoding()


def test_importing_the_package_does_not_import_the_library() -> None:
    code = "import sys, gptoss_mlx.harmony; sys.exit('openai_harmony' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
