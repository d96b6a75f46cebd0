"""Weights that are infinite or no numbers are refused while loading, and files that change then;
what becomes so on the way ends a stream."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss_mlx.backends import loading
from gptoss_mlx.engine.events import TokenEvent
from gptoss_mlx.errors import CheckpointError, NumericalError
from gptoss_mlx.files.reader import FileReader
from gptoss_mlx.files.shard import Tensor
from gptoss_mlx.models.checkpoint import Checkpoint
from gptoss_mlx.models.tiny import materialise
from tests.support.backends import BACKENDS, engine_on, open_on
from tests.support.quantized import write_quantized

NAMES = [
    "model.norm.weight",
    "model.layers.1.input_layernorm.weight",
    "model.layers.0.post_attention_layernorm.weight",
    "model.layers.1.self_attn.sinks",
    "model.layers.0.self_attn.k_proj.weight",
    "model.layers.0.self_attn.o_proj.bias",
    "model.layers.1.mlp.router.weight",
    "model.layers.1.mlp.router.bias",
    "model.layers.0.mlp.experts.gate_up_proj_bias",
    "model.layers.1.mlp.experts.down_proj_bias",
    "lm_head.weight",
]
QUANTIZED = ["lm_head.scales", "model.layers.0.self_attn.v_proj.biases"]


def _put(folder: Path, name: str, word: int) -> tuple[Path, int]:
    """Overwrite a tensor's last bfloat16; its file and place."""
    with Checkpoint.open(folder) as checkpoint:
        tensor = checkpoint.tensors[name]
    at = tensor.offset + tensor.nbytes - 2
    with tensor.path.open("r+b") as file:
        file.seek(at)
        file.write(word.to_bytes(2, "little"))
    return tensor.path, at


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [*NAMES, *QUANTIZED, "model.embed_tokens.weight"])
def test_a_weight_that_is_not_finite_is_named(
    backend: str, name: str, small_checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "broken"
    if name in QUANTIZED:
        write_quantized(small_checkpoint, folder, {"bits": 8, "group_size": 32})
    else:
        shutil.copytree(small_checkpoint, folder)
    word, found = (0x7F80, "infinite") if len(name) % 2 else (0xFFC0, r"no number \(NaN\)")
    path, at = _put(folder, name, word)
    options = {} if backend == "torch" else {"embedding": "resident"}
    with pytest.raises(
        CheckpointError,
        match=f"^{path}: tensor {name} holds a value that is {found}, at byte {at}; weights are",
    ):
        open_on(backend, folder, **options)


@pytest.mark.parametrize("backend", ["mlx", "cpu"])
def test_a_row_of_the_embedding_is_looked_at_when_it_is_read(backend: str, breakable: Path) -> None:
    _put(breakable, "model.embed_tokens.weight", 0x7FC0)
    model = open_on(backend, breakable, embedding="file")
    state, last = model.new_state(), model.config.vocab_size - 1
    model.prefill([1, 2, 3], state)
    with pytest.raises(CheckpointError, match=r"tensor model.embed_tokens.weight holds a value"):
        model.prefill([1, last], state)
    with pytest.raises(CheckpointError, match=r"tensor model.embed_tokens.weight holds a value"):
        model.decode([[last]], [state])[0]


@pytest.mark.parametrize(
    ("dtype", "kind", "infinity"),
    [("BF16", "<u2", 0x7F80), ("F16", "<u2", 0x7C00), ("F32", "<u4", 0x7F800000)],
)
def test_every_float_is_told_from_what_is_none(
    dtype: str, kind: str, infinity: int, tmp_path: Path
) -> None:
    """Those around what decides, and random ones."""
    sign = 1 << (8 * np.dtype(kind).itemsize - 1)
    near = [0, 1, infinity - 1, infinity, infinity + 1, sign - 1]
    random = np.random.default_rng(0).integers(0, 2 * sign, 500)
    words = np.array([*near, *(sign + n for n in near), *random], kind)
    # Each by itself and, last, among eight.
    path, out = tmp_path / "words", bytearray(8 * words.itemsize)
    rows = np.concatenate((np.tile(words[:1], (len(words), 7)), words[:, None]), axis=1)
    path.write_bytes(words.tobytes() + rows.tobytes())
    reader = FileReader([path])
    for i, word in enumerate([*words.tolist()] * 2):
        count = 1 if i < len(words) else 8
        start = i if count == 1 else len(words) + 8 * (i - len(words))
        nbytes = count * words.itemsize
        tensor = Tensor("t", dtype, (count,), path, start * words.itemsize, nbytes)
        try:
            reader.read_here([(tensor, memoryview(out)[:nbytes])])
            finite = True
        except CheckpointError:
            finite = False
        assert finite == (word & (sign - 1) < infinity)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("change", ["shorter", "overwritten"])
def test_a_file_that_changes_while_it_is_loaded(
    backend: str, change: str, breakable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "PIECE", 4096)
    with Checkpoint.open(breakable) as checkpoint:
        path = checkpoint.tensors["lm_head.weight"].path  # what is loaded last
    calls: list[int] = []

    def progress(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == 1 and change == "shorter":
            os.truncate(path, 100)
        elif len(calls) == 1:
            with path.open("r+b") as file:
                file.write(file.read(1))

    with pytest.raises(CheckpointError, match=f"^{path}: was c.* while in use; load it again$"):
        open_on(backend, breakable, progress=progress)
    assert calls


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_that_are_not_finite_end_the_stream(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_on(backend, materialise(), context=2048)
    model: Any = engine.model
    options: dict[str, Any] = {"raw": True, "max_tokens": 3, "temperature": 0}
    wanted = engine.generate([200, 300, 400], **options).text
    decode: Callable[..., Any] = model.decode
    events = []
    with monkeypatch.context() as patch:
        patch.setattr(model, "decode", lambda *a: decode(*a) + float("inf"))
        with pytest.raises(NumericalError, match="token 1 of the answer are not finite"):
            events += list(engine.stream([200, 300, 400], **options))
    assert not [event for event in events if isinstance(event, TokenEvent)]
    assert engine.generate([200, 300, 400], **options).text == wanted


def test_logits_that_are_asked_for_are_finite_or_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_on("mlx", materialise(), context=2048)
    model: Any = engine.model
    evaluate: Callable[..., Any] = model.evaluate

    def damaged(*arguments: Any) -> Any:
        rows = evaluate(*arguments)
        rows[2, 5] = float("nan")
        return rows

    with monkeypatch.context() as patch:
        patch.setattr(model, "evaluate", damaged)
        with pytest.raises(NumericalError, match="logits for what follows token 3 are not finite"):
            engine.logits([200, 300, 400, 500])
    assert engine.logits([200, 300, 400, 500]).shape[0] == 4
