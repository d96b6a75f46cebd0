"""Writes the vocabulary in the form Hugging Face's tokenizers, transformers and mlx-lm read.

The file encodes every text as openai-harmony does: byte-level BPE whose merges are recovered
from the token ranks (each split of a token into two tokens, in the order of the merged rank).
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from gptoss_mlx.harmony.encoding import special_tokens, vocabulary_lines
from gptoss_mlx.harmony.words import PATTERN

CHAT_TEMPLATE = Path(__file__).resolve().parent.parent / "data" / "chat_template.jinja"


def write_tokenizer(folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja into a folder."""
    text = json.dumps(tokenizer_json(), ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|return|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 131072,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def byte_letters() -> dict[int, str]:
    """The printable letter that stands for each byte in a byte-level vocabulary."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in letters)
    letters.update({byte: chr(0x100 + index) for index, byte in enumerate(others)})
    return letters


def ordinary_tokens() -> list[str]:
    """The ordinary tokens by id, in byte letters."""
    table = {byte: letter for byte, letter in byte_letters().items()}
    return [
        base64.b64decode(line.split(b" ", 1)[0]).decode("latin-1").translate(table)
        for line in vocabulary_lines()
    ]


def tokenizer_json() -> dict[str, Any]:
    """The content of tokenizer.json."""
    tokens = ordinary_tokens()
    ranks = {token: rank for rank, token in enumerate(tokens)}
    added = [
        {
            "id": id,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for text, id in special_tokens().items()
    ]
    split = {
        "type": "Split",
        "pattern": {"Regex": PATTERN},
        "behavior": "Isolated",
        "invert": False,
    }
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [split, {**level, "use_regex": False}],
        },
        "post_processor": {**level, "trim_offsets": False, "use_regex": False},
        "decoder": {**level, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            # as the encoder does: a word that is a token is that token
            "ignore_merges": True,
            "vocab": ranks,
            "merges": _merges(tokens, ranks),
        },
    }


def _merges(tokens: list[str], ranks: dict[str, int]) -> list[tuple[str, str]]:
    merges: list[tuple[str, str]] = []
    for token in tokens:
        splits = [
            (ranks[left], ranks[right], left, right)
            for at in range(1, len(token))
            if (left := token[:at]) in ranks and (right := token[at:]) in ranks
        ]
        if len(splits) > 1:
            splits.sort()
        merges += [(left, right) for _, _, left, right in splits]
    return merges
