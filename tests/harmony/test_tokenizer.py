"""Tokenizers the engine opens: agreement with the vocabulary, SentencePiece, broken files."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gptoss_mlx.errors import VocabularyError
from gptoss_mlx.harmony import tokenizer as module
from gptoss_mlx.harmony.export import tokenizer_json
from gptoss_mlx.harmony.tokenizer import SentencePieceTokenizer, check_vocabulary, load_tokenizer
from gptoss_mlx.spec.config import ModelConfig


def config(vocab_size: int = 201088) -> ModelConfig:
    return cast(ModelConfig, SimpleNamespace(vocab_size=vocab_size, eos_token_id=200002))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPTOSS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def good() -> dict[str, Any]:
    return tokenizer_json()


def write(folder: Path, data: Any) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_folder_without_tokenizer_files_speaks_harmony(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tmp_path, config())
    assert tokenizer.harmony is not None
    assert tokenizer.stop_ids == {199999, 200002, 200012}
    assert tokenizer.vocab_size == 201088
    assert tokenizer.encode("<|start|>Hi") == [200006, 12194]
    decoder = tokenizer.decoder()
    ids = tokenizer.encode("<|start|>naïve 👍🏽")
    assert "".join(decoder.push(id) for id in ids) + decoder.flush() == "<|start|>naïve 👍🏽"
    assert decoder.push(9552) == " "
    assert decoder.flush() == "\ufffd"


@pytest.mark.slow
def test_agreement_is_checked_once_for_each_content(
    tmp_path: Path, cache: Path, good: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, good)
    load_tokenizer(tmp_path, config())
    assert len(list((cache / "tokenizers").iterdir())) == 1

    def never(path: Path, data: Any) -> None:
        raise AssertionError("compared again")

    monkeypatch.setattr(module, "check_vocabulary", never)
    load_tokenizer(tmp_path, config())
    write(tmp_path, {"another": "content"})
    with pytest.raises(AssertionError, match="compared again"):
        load_tokenizer(tmp_path, config())


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_does_no_harm(
    tmp_path: Path, cache: Path, good: dict[str, Any]
) -> None:
    cache.write_text("a file where the folder should be")
    write(tmp_path, good)
    assert load_tokenizer(tmp_path, config()).harmony is not None


def edited(good: dict[str, Any], change: str) -> dict[str, Any]:
    vocab = dict(good["model"]["vocab"])
    added = [dict(token) for token in good["added_tokens"]]
    if change == "swapped":
        vocab["the"], vocab["and"] = vocab["and"], vocab["the"]
    elif change == "missing":
        del vocab["the"]
    elif change == "more":
        vocab["surely-no-such-token"] = 199998
    elif change == "special":
        added[2 + 6]["content"] = "<|begin|>"
    elif change == "few":
        added = added[:10]
    elif change == "released":
        added = added[:21]
        added[20]["content"] = "<|endofprompt|>"
    return {**good, "model": {**good["model"], "vocab": vocab}, "added_tokens": added}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("swapped", r"tokenizer.json: token '(and|the)' has id \d+, but \d+ in o200k_harmony"),
        ("missing", r"tokenizer.json: token 'the' \(id 3086\) is missing"),
        ("more", r"tokenizer.json: special token 'surely-no-such-token' has id 199998"),
        ("special", r"tokenizer.json: special token '<\|begin\|>' has id 200006"),
        ("few", r"tokenizer.json: special token '<\|call\|>' is missing"),
    ],
)
def test_disagreement_with_the_vocabulary_is_named(
    good: dict[str, Any], change: str, line: str
) -> None:
    with pytest.raises(VocabularyError, match=line):
        check_vocabulary(Path("tokenizer.json"), edited(good, change))


@pytest.mark.slow
def test_a_file_that_disagrees_is_not_remembered(
    tmp_path: Path, cache: Path, good: dict[str, Any]
) -> None:
    write(tmp_path, edited(good, "few"))
    with pytest.raises(VocabularyError, match="is missing"):
        load_tokenizer(tmp_path, config())
    assert not cache.exists()


def test_reserved_tokens_may_be_missing_as_in_the_released_file(good: dict[str, Any]) -> None:
    check_vocabulary(Path("tokenizer.json"), edited(good, "released"))


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"model": 5, "added_tokens": []}', '{"model": {"vocab": []}}']
)
def test_broken_tokenizer_json_is_one_line(tmp_path: Path, content: str) -> None:
    write(tmp_path, content)
    with pytest.raises(VocabularyError, match=r"tokenizer\.json: ") as caught:
        load_tokenizer(tmp_path, config())
    assert "\n" not in str(caught.value)


def test_a_model_with_fewer_rows_than_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError) as caught:
        load_tokenizer(tmp_path, config(512))
    assert str(caught.value) == (
        f"{tmp_path}: holds no tokenizer file, which means Harmony's vocabulary: 201088 tokens,"
        " but the model has 512"
    )


@pytest.mark.slow
def test_a_file_of_more_tokens_than_rows_is_named(tmp_path: Path, good: dict[str, Any]) -> None:
    path = write(tmp_path, good)
    with pytest.raises(VocabularyError) as caught:
        load_tokenizer(tmp_path, config(512))
    assert str(caught.value) == f"{path}: 201088 tokens, but the model has 512"


@pytest.mark.parametrize(
    ("name", "size", "line"),
    [
        ("tokenizer.json", (40 << 20) + 1, "cannot be read: larger than 41,943,040 bytes"),
        ("tokenizer.model", (32 << 20) + 1, "cannot be read: larger than 33,554,432 bytes"),
    ],
)
def test_a_file_beyond_its_limit_is_not_read(
    tmp_path: Path, name: str, size: int, line: str
) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(size)
    tracemalloc.start()
    try:
        with pytest.raises(VocabularyError, match=line):
            load_tokenizer(tmp_path, config())
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_many_small_values_are_refused_before_they_are_parsed(tmp_path: Path) -> None:
    path = write(tmp_path, '{"a": [' + "[]," * (2 << 20) + "0]}")
    with pytest.raises(VocabularyError, match="holds more than 2,097,152 values"):
        load_tokenizer(tmp_path, config())
    assert path.stat().st_size < 40 << 20


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_a_link_that_leads_nowhere_is_no_missing_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("nowhere")
    with pytest.raises(VocabularyError, match=rf"{name}: cannot be read: No such file"):
        load_tokenizer(tmp_path, config())


@pytest.fixture(scope="module")
def sentencepiece_model() -> bytes:
    import sentencepiece

    out = io.BytesIO()
    words = ["the cat sat on the mat", "a dog ran over the hill", "cats and dogs are animals"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 20),
        model_writer=out,
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    return out.getvalue()


def test_sentencepiece_folder_runs_in_raw_mode(tmp_path: Path, sentencepiece_model: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model)
    tokenizer = load_tokenizer(tmp_path, config(1000))
    assert tokenizer.harmony is None
    assert tokenizer.vocab_size == 320
    assert tokenizer.stop_ids == {2, 200002}
    ids = tokenizer.encode("the cat 👍 sat")
    assert ids[0] == 1
    decoder = tokenizer.decoder()
    text = "".join(decoder.push(id) for id in ids) + decoder.flush()
    assert text == " the cat 👍 sat"
    with pytest.raises(VocabularyError, match=r"tokenizer\.model: 320 tokens, but the model has 9"):
        load_tokenizer(tmp_path, config(9))


def test_sentencepiece_begin_token_can_be_turned_off(
    tmp_path: Path, sentencepiece_model: bytes
) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sentencepiece_model)
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    assert SentencePieceTokenizer(path).encode("the")[0] != 1


def test_a_begin_token_that_is_no_boolean_is_refused(
    tmp_path: Path, sentencepiece_model: bytes
) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sentencepiece_model)
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": "no"}')
    with pytest.raises(VocabularyError, match="add_bos_token is 'no', not true or false"):
        SentencePieceTokenizer(path)


def test_broken_sentencepiece_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(VocabularyError, match=r"tokenizer\.model: not a SentencePiece model"):
        load_tokenizer(tmp_path, config())
