"""The wheel: built from the sources, complete, and working outside the checkout."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import gptoss_mlx
from tests.root import ROOT

SOURCES = ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "gptoss_mlx", "convert", "metal")
PACKAGES = {
    "gptoss_mlx": "gptoss_mlx",
    "convert": "gptoss_convert",
    "metal": "gptoss_mlx/_metal",
}
"""Folder in the checkout -> package as installed."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because a build leaves folders beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignore)
        else:
            (folder / "source").mkdir(exist_ok=True)
            shutil.copy(ROOT / name, folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", str(folder), str(folder / "source")]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files as an installer lays them out."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run_outside(site: Path, tmp_path: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, *arguments]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_the_wheel_has_every_source_and_data_file(site: Path) -> None:
    kept = {".py", ".typed", ".tiktoken", ".jinja", ".safetensors", ".json", ".metal", ".h"}
    kept |= {".html", ".css", ".js", ".woff2", ".txt"}  # the page and its libraries
    wanted = {
        Path(package) / path.relative_to(ROOT / folder)
        for folder, package in PACKAGES.items()
        for path in (ROOT / folder).rglob("*")
        if (path.is_file() and path.suffix in kept) or path.name == "py.typed"
        if "tiny" not in path.parts  # which makes the tiny model, in a checkout
    }
    assert Path("gptoss_mlx/data/o200k_base.tiktoken") in wanted
    assert Path("gptoss_convert/sources/gguf.py") in wanted
    assert {path for path in wanted if not (site / path).is_file()} == set()
    data = {path.name for path in (ROOT / "gptoss_mlx" / "data").iterdir()}
    assert {path.name for path in (site / "gptoss_mlx" / "data").iterdir()} == data


def test_the_wheel_has_nothing_else(site: Path) -> None:
    name = f"gptoss_mlx-{gptoss_mlx.__version__}.dist-info"
    assert sorted(path.name for path in site.iterdir()) == ["gptoss_convert", "gptoss_mlx", name]
    licences = sorted(path.name for path in (site / name / "licenses").iterdir())
    assert licences == ["LICENSE", "NOTICE"]
    entries = (site / name / "entry_points.txt").read_text(encoding="utf-8")
    assert entries.splitlines()[1:] == [
        "gptoss-convert = gptoss_convert.__main__:main",
        "gptoss-mlx = gptoss_mlx.cli.main:main",
    ]


def test_the_metadata_names_what_is_needed(site: Path) -> None:
    path = site / f"gptoss_mlx-{gptoss_mlx.__version__}.dist-info" / "METADATA"
    metadata = email.message_from_string(path.read_text(encoding="utf-8"))
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    needed = metadata.get_all("Requires-Dist") or []
    mlx = sorted(line for line in needed if line.startswith("mlx"))
    assert [line.split(";")[1].strip() for line in mlx if "extra" not in line] == [
        'sys_platform == "darwin"',
        'sys_platform == "linux"',
    ]
    plain = [line for line in needed if "extra ==" not in line]
    assert not [line for line in plain if line.startswith(("torch", "transformers", "mlx-lm"))]


def test_the_wheel_works_outside_the_checkout(site: Path, tmp_path: Path) -> None:
    where = run_outside(site, tmp_path, "-c", "import gptoss_mlx; print(gptoss_mlx.__file__)")
    assert Path(where).parent == site / "gptoss_mlx"
    version = run_outside(site, tmp_path, "-m", "gptoss_mlx", "--version")
    assert version == f"gptoss-mlx, version {gptoss_mlx.__version__}"
    run_outside(site, tmp_path, "-m", "gptoss_mlx", "generate", "--help")
    usage = run_outside(site, tmp_path, "-m", "gptoss_convert", "--help")
    assert usage.startswith("Usage: ")
    code = "from gptoss_mlx.harmony import Encoding; print(len(Encoding().encode('hello')))"
    assert run_outside(site, tmp_path, "-c", code) == "1"
