"""Programs from npm, run as a person runs them, with no way out of this machine.

GPTOSS_NODE_MODULES names the node_modules folder that has them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.root import ROOT

SCRIPTS = ROOT / "tests" / "server" / "node"
SECONDS = 240
MODULES = os.environ.get("GPTOSS_NODE_MODULES", "")
_NOWHERE = "http://127.0.0.1:9"


def package(name: str) -> Path:
    """The folder of a package; the test is skipped where it is missing."""
    folder = Path(MODULES, name)
    if not MODULES or not folder.is_dir():
        pytest.skip(f"GPTOSS_NODE_MODULES names no folder with {name}")
    return folder


def run(
    command: list[str], folder: Path, environment: dict[str, str] | None = None, status: int = 0
) -> str:
    """What a program writes that reaches this machine alone, and ends with a status."""
    outside = {"HTTP_PROXY": _NOWHERE, "HTTPS_PROXY": _NOWHERE, "NO_PROXY": "127.0.0.1"}
    home = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**home, **outside, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def run_script(name: str, url: str, folder: Path, *packages: str) -> str:
    """What a script of SCRIPTS writes for the server at an address."""
    for one in packages:
        package(one)
    if (node := shutil.which("node")) is None:
        pytest.skip("node is not installed")
    (folder / "node_modules").symlink_to(MODULES)
    shutil.copy(SCRIPTS / name, folder)
    return run([node, name, url], folder, {"BASE_URL": url})
