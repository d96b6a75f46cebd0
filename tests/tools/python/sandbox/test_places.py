"""What an interpreter may see of this machine: Python and its libraries, and no home folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from gptoss_mlx.tools.python.sandbox import places


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with an environment in it, whose base lies there too."""
    home = tmp_path / "home"
    for name in (
        "project/.venv/lib/python3.11/site-packages",
        "project/.venv/bin",
        "uv/lib",
        "uv/bin",
    ):
        (home / name).mkdir(parents=True)
    (home / "secret").touch()
    (home / "project/code.py").touch()
    (home / "uv/bin/python3.11").touch()
    monkeypatch.setattr(sys, "prefix", str(home / "project/.venv"))
    monkeypatch.setattr(sys, "base_prefix", str(home / "uv"))
    monkeypatch.setattr(sys, "_base_executable", str(home / "uv/bin/python3.11"), raising=False)
    site = str(home / "project/.venv/lib/python3.11/site-packages")
    monkeypatch.setattr(sys, "path", ["", str(home / "project"), str(home / "uv/lib/x"), site])
    monkeypatch.setattr(places.sysconfig, "get_path", lambda name: site)
    return home


def test_of_an_environment_in_the_home_folder_only_its_libraries_are_seen(
    environment: Path,
) -> None:
    found = places.readable_places(str(environment / "worker.py"))
    below = {
        Path(path).relative_to(environment) for path in found if path.startswith(str(environment))
    }
    assert below == {Path("project/.venv/lib"), Path("uv/lib"), Path("uv/bin/python3.11")}
    secret = environment / "secret"
    assert [path for path in found if secret.is_relative_to(path)] == []


def test_of_a_python_for_macos_its_library_and_program_are_seen(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    (environment / "uv/Resources").mkdir()
    (environment / "uv/Python").touch()
    found = places.readable_places(str(environment / "worker.py"))
    assert {str(environment / f"uv/{name}") for name in ("lib", "Python", "Resources")} <= set(
        found
    )
    assert "/usr" not in found


def test_what_only_this_process_imports_from_is_left_out(environment: Path) -> None:
    site = str(environment / "project/.venv/lib/python3.11/site-packages")
    assert places.library_paths() == (str(environment / "uv/lib/x"), site)


def test_no_place_lies_below_another() -> None:
    found = places.readable_places(__file__)
    assert __file__ in found
    assert [a for a in found for b in found if a != b and a.startswith(f"{b}/")] == []
    assert {path for path in found if path in ("/", "/home", "/root", "/etc", os.getcwd())} == set()
