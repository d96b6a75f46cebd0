"""GGUF files: split ones, foreign ones, and headers in which anything may be wrong."""

from __future__ import annotations

import os
import struct
import sys
import time
import tracemalloc
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


def header(*fields: bytes, tensors: int = 0) -> bytes:
    """A GGUF of these metadata, and no more."""
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, len(fields)) + b"".join(fields)


def named(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


STRING, ARRAY, U32, BOOL = 8, 9, 4, 7
WORD = struct.pack("<I", 1)
HOSTILE: dict[str, tuple[bytes, int, str]] = {
    "two gigabytes of empty strings": (
        header(named(b"a", ARRAY, struct.pack("<IQ", STRING, 1 << 28))),
        2 << 30,
        "it says it has an array of 268435456 values of type 8",
    ),
    "many arrays of many strings": (
        header(
            named(b"a", ARRAY, struct.pack("<IQ", STRING, 1) + bytes(8)),
            named(b"b", ARRAY, struct.pack("<IQ", STRING, 1 << 21)),
        ),
        1 << 30,
        "it says it has an array of 2097152 values of type 8",
    ),
    "more metadata than any model": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 17),
        1 << 30,
        "it says it has 131072 metadata",
    ),
    "a name of a gigabyte": (
        header(named(b"", U32, b""))[:24] + struct.pack("<Q", 1 << 30),
        2 << 30,
        "a name is no UTF-8 text of at most 65536 bytes",
    ),
    "a text of a gigabyte": (
        header(named(b"general.architecture", STRING, struct.pack("<Q", 1 << 30))),
        2 << 30,
        "general.architecture is None, only 'gpt-oss'",
    ),
    "arrays in arrays": (
        header(named(b"a", ARRAY, struct.pack("<IQ", ARRAY, 1) * 100)),
        1 << 20,
        "it says it has an array of 1 values of type 9",
    ),
    "a name twice": (
        header(named(b"a", U32, WORD), named(b"a", U32, WORD)),
        1 << 20,
        "the name 'a' occurs twice",
    ),
    "a name that is no text": (header(named(b"\xff", U32, WORD)), 1 << 20, "no UTF-8 text"),
    "an alignment that is a truth": (
        header(named(b"general.alignment", BOOL, b"\1")),
        1 << 20,
        "general.alignment is True, not a power of two",
    ),
    "an alignment of three": (
        header(named(b"general.alignment", U32, struct.pack("<I", 3))),
        1 << 20,
        "general.alignment is 3, not a power of two",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header_is_refused_at_once_and_in_little_memory(
    case: str, tmp_path: Path
) -> None:
    start, size, reason = HOSTILE[case]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(start)
    os.truncate(path, size)  # what follows is a hole, which reads as zeros
    begun = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            open_source(path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 200 + len(str(path))
    assert time.process_time() - begun < 30


def tensor(name: bytes, size: int, offset: int) -> bytes:
    """float32 [size]"""
    return text(name) + struct.pack("<IQIQ", 1, size, 0, offset)


TENSORS = {
    "overlap": ((tensor(b"a", 16, 0), tensor(b"b", 16, 32)), "'b' begins at byte 128 and overlaps"),
    "one place": ((tensor(b"a", 16, 0), tensor(b"b", 16, 0)), "'b' begins at byte 96 and overlaps"),
    "unaligned": ((tensor(b"a", 16, 4), tensor(b"b", 16, 96)), "begins at 4, not a multiple of 32"),
    "a name twice": ((tensor(b"a", 16, 0), tensor(b"a", 16, 64)), "it names a tensor twice"),
    "beyond all": (
        (tensor(b"a", 1 << 63, 0), tensor(b"b", 1, 0)),
        "ends at byte 36893488147419103328, but the file has 4096",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_have_bytes_of_their_own(case: str, tmp_path: Path) -> None:
    tensors, reason = TENSORS[case]
    path = tmp_path / "model.gguf"
    path.write_bytes(header(tensors=len(tensors)) + b"".join(tensors))
    os.truncate(path, 4096)
    with pytest.raises(CheckpointError) as caught:
        open_source(path)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("m-00001-of-00000.gguf", "is by its name part 1 of 0"),
        ("m-00000-of-00002.gguf", "is by its name part 0 of 2"),
        ("m-00003-of-00002.gguf", "is by its name part 3 of 2"),
        ("m-00001-of-99999.gguf", "its other part m-00002-of-99999.gguf is missing"),
    ],
)
def test_the_numbers_of_parts_are_checked(
    name: str, said: str, model: bytes, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(model)
    for source in (path, tmp_path):
        with pytest.raises(CheckpointError) as caught:
            open_source(source)
        assert str(caught.value) == f"{path}: {said}"


def test_a_gguf_that_shrinks_later_is_noticed_by_the_reader(release: Path, tmp_path: Path) -> None:
    path = write_gguf(release, tmp_path / "model.gguf")
    piece = open_source(path).pieces["lm_head.weight"]
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"ends within tensor 'output\.weight'"):
        piece.read(0, piece.shape[0])


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS takes only names that are UTF-8")
def test_a_file_may_have_a_name_that_is_no_utf_8(model: bytes, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"m\xfe.gguf")
    path.write_bytes(model)
    made = convert(path, tmp_path / os.fsdecode(b"made\xff"))
    assert sorted(made.glob("*.safetensors"))
