"""The exported tokenizer.json against openai-harmony, and its chat template against render."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss_mlx.harmony import Conversation, Encoding
from gptoss_mlx.harmony.export import write_tokenizer
from gptoss_mlx.harmony.words import PATTERN


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def texts(encoding: Encoding) -> list[str]:
    rng = np.random.default_rng(11)
    alphabet = [*"ab 0\n\t!/='éИ你👍\u200d\u0301", "  ", "\r\n", "the", "'s", "'LL", "<|", "123"]
    mixed = ["".join(rng.choice(alphabet, int(rng.integers(1, 40)))) for _ in range(3000)]
    decoded = [
        encoding.decode(rng.integers(0, 199998, int(rng.integers(1, 30))).tolist())
        for _ in range(3000)
    ]
    prose = [path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))]
    return [*mixed, *decoded, *prose]


def test_text_gets_the_same_ids_as_in_the_library(encoding: Encoding, tokenizer: Any) -> None:
    for text in texts(encoding):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == encoding.encode_special(text)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_all_ids_have_the_same_text_and_specials_are_special(
    encoding: Encoding, tokenizer: Any
) -> None:
    assert tokenizer.get_vocab_size() == 201088
    for id in range(0, 201088, 7):
        assert tokenizer.decode([id], skip_special_tokens=False) == encoding.decode([id])
    text = "<|start|>user<|message|>x<|end|><|reserved_201087|>"
    assert tokenizer.encode(text, add_special_tokens=False).ids == encoding.encode_special(text)
    assert tokenizer.decode(encoding.encode_special(text)) == "userx"


def test_merges_are_as_many_as_in_the_released_file(folder: Path) -> None:
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert len(data["model"]["merges"]) == 446189
    assert data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] == PATTERN


@pytest.mark.oracle
def test_transformers_reads_the_folder_and_its_template_renders_as_ours(
    encoding: Encoding, folder: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    assert tokenizer.eos_token_id == 200002
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi.\n"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "More?"},
    ]
    date = datetime.date.today().isoformat()
    for length in (2, 3, 4):
        for start in (0, 1):
            given = tuple(messages[start:length])
            for is_open in (True, False):
                theirs = tokenizer.apply_chat_template(
                    list(given), add_generation_prompt=is_open, tokenize=False
                )
                ours = Conversation(given, date=date, open=is_open).render(encoding)
                assert encoding.encode_special(theirs) == ours
    high = tokenizer.apply_chat_template(messages, tokenize=False, reasoning_effort="high")
    assert "Reasoning: high\n" in high
