"""Where the cache and the data are, and paths as people write them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from gptoss_mlx.files.paths import cache_folder, data_folder, expanded


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("GPTOSS_CACHE", "XDG_CACHE_HOME", "GPTOSS_DATA", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has a folder of its own for caches")
def test_the_cache_is_where_xdg_says(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == home / ".cache" / "gptoss_mlx"
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert cache_folder() == Path("/var/cache/gptoss_mlx")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == home / ".cache" / "gptoss_mlx"


def test_the_cache_is_where_a_person_says(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTOSS_CACHE", "~/mine")
    assert cache_folder() == home / "mine"


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has a folder of its own for data")
def test_the_data_are_where_xdg_or_a_person_says(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert data_folder() == home / ".local" / "share" / "gptoss_mlx"
    monkeypatch.setenv("XDG_DATA_HOME", "/var/data")
    assert data_folder() == Path("/var/data/gptoss_mlx")
    monkeypatch.setenv("GPTOSS_DATA", "~/mine")
    assert data_folder() == home / "mine"


def test_a_user_without_a_home_is_told_what_to_set(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTOSS_CACHE", "~no-such-user/cache")
    with pytest.raises(OSError, match="there is no home folder; set GPTOSS_CACHE to a folder"):
        cache_folder()

    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("GPTOSS_CACHE")
    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(OSError, match="there is no home folder; set GPTOSS_CACHE to a folder"):
        cache_folder()


def test_an_unknown_user_s_home_is_a_name_as_in_a_shell(home: Path) -> None:
    assert expanded("~/model") == home / "model"
    assert expanded("~no-such-user/model") == Path("~no-such-user/model")
    assert expanded(os.fsdecode(b"\xff/~")) == Path(os.fsdecode(b"\xff/~"))
