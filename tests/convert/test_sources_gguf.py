"""GGUF files: split ones, foreign ones, and headers in which anything may be wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convert.sources import open_source
from gptoss_mlx.errors import CheckpointError
from tests.convert.layouts import write_gguf, write_mlx_lm
from tests.convert.results import convert, refusal, stored

AFFINE = {"group_size": 64, "bits": 4, "mode": "affine"}


@pytest.fixture(scope="module")
def model(release: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A sound file."""
    return write_gguf(release, tmp_path_factory.mktemp("gguf") / "model.gguf").read_bytes()


def test_a_gguf_is_found_by_any_part_and_by_its_folder(release: Path, tmp_path: Path) -> None:
    first = write_gguf(release, tmp_path / "gguf" / "model.gguf", parts=3)
    files = sorted(first.parent.iterdir())
    assert len(files) == 3
    for path in (*files, first.parent):
        source = open_source(path, exact=True)
        assert (source.kind, source.name) == ("gguf", first.name)
        assert list(source.paths) == files


def test_gate_and_up_may_be_of_two_types(release: Path, tmp_path: Path) -> None:
    kinds = {"blk.0.ffn_up_exps.bias": "BF16", "blk.1.ffn_gate_exps.bias": "BF16"}
    model = write_gguf(release, tmp_path / "model.gguf", kinds=kinds)
    assert stored(convert(model, tmp_path / "made", target="release")) == stored(release)


FOREIGN: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "gguf of Q4_0 experts": (
        lambda release, folder: write_gguf(release, folder / "m.gguf", experts="Q4_0"),
        "tensor blk.0.ffn_gate_exps.weight is Q4_0, not the released MXFP4",
    ),
    "mlx-lm of affine experts": (
        lambda release, folder: write_mlx_lm(release, folder / "mlx", experts=AFFINE),
        "model.layers.0.mlp.experts.gate_proj is affine in 4 bits",
    ),
    "gguf with a tensor more": (
        lambda release, folder: write_gguf(
            release, folder / "m.gguf", extra={"blk.0.ffn_gate_exps.scale": np.ones(4, np.float32)}
        ),
        "holds tensor 'blk.0.ffn_gate_exps.scale', which the config does not call for",
    ),
    "gguf of another width": (
        lambda release, folder: write_gguf(
            release, folder / "m.gguf", metadata={"embedding_length": 96}
        ),
        "calls for",
    ),
    "gguf of more layers than memory": (
        lambda release, folder: write_gguf(
            release, folder / "m.gguf", metadata={"block_count": 4_000_000_000}
        ),
        "num_hidden_layers is 4000000000, not within 1 to 1024",
    ),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_weights_are_refused_by_name(case: str, release: Path, tmp_path: Path) -> None:
    write, part = FOREIGN[case]
    source = write(release, tmp_path / "source")
    for target in ("mlx", "release"):
        assert part in refusal(source, tmp_path / "made", "--to", target)
    assert not (tmp_path / "made").exists()


def test_a_gguf_of_another_architecture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    line = refusal(path, tmp_path / "made")
    assert line == f"{path}: general.architecture is 'llama', only 'gpt-oss' can be converted"


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    changes=st.lists(
        st.tuples(
            st.integers(0, 3000), st.sampled_from([b"\0", b"\1", b"\xff", b"\xff" * 8, b"\t"])
        ),
        min_size=1,
        max_size=3,
    )
)
def test_any_change_of_a_gguf_header_is_a_refusal_or_nothing(
    changes: list[tuple[int, bytes]], model: bytes, tmp_path: Path
) -> None:
    whole = bytearray(model)
    for at, value in changes:
        whole[at : at + len(value)] = value
    path, told = tmp_path / "changed.gguf", ""
    path.write_bytes(whole)
    try:
        open_source(path, exact=True)
    except CheckpointError as error:
        told = str(error)
    assert "\n" not in told
    assert len(told) < 500 + 2 * len(str(path))


def test_a_gguf_that_shrinks_later_is_noticed_by_the_reader(release: Path, tmp_path: Path) -> None:
    path = write_gguf(release, tmp_path / "model.gguf")
    piece = open_source(path).pieces["lm_head.weight"]
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"ends within tensor 'output\.weight'"):
        piece.read(0, piece.shape[0])
