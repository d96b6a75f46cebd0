"""Conversions as tests run them, and what they left: read with safetensors' own library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors
from click.testing import CliRunner, Result

from convert import journal
from convert import weights as writing
from convert.__main__ import main
from convert.conversion import Conversion
from tests.support.checkpoints import Shape

SHAPE = Shape(2, 128, 64, 4, 2, 4, 2, 32, vocab=256)
"""No two sizes of a tensor are equal; every width is a multiple of 64."""

Stored = dict[str, tuple[str, tuple[int, ...], bytes]]


def convert(source: Path, folder: Path, recipe: str = "bf16", target: str = "mlx") -> Path:
    Conversion.prepare(source, folder, target=target, recipe=recipe).run()
    return folder


def stored(folder: Path) -> Stored:
    """name -> (dtype, shape, bytes) of all files."""
    return {
        name: (entry["dtype"], tuple(entry["shape"]), bytes(entry["data"]))
        for path in sorted(folder.glob("*.safetensors"))
        for name, entry in safetensors.deserialize(path.read_bytes())
    }


def experts(folder: Path) -> Stored:
    return {name: tensor for name, tensor in stored(folder).items() if ".experts." in name}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by its path within the folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def weights(folder: Path) -> dict[str, bytes]:
    """The weight files."""
    return {name: data for name, data in contents(folder).items() if name.endswith(".safetensors")}


def run(*arguments: object) -> Result:
    """The command, in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refusal(*arguments: object) -> str:
    """The one line with which the command ends."""
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "unexpected" not in result.stderr
    return result.stderr.removeprefix("error: ").removesuffix("\n")


def unfinished(source: Path, folder: Path, recipe: str = "8", target: str = "mlx") -> Path:
    """A conversion that Ctrl-C ended after some of its tensors, each noted in the journal."""
    count = 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count > 20:
            raise KeyboardInterrupt
        return real(*arguments)

    real = writing.made
    conversion = Conversion.prepare(source, folder, target=target, recipe=recipe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "_WORKERS", 1)
        patch.setattr(writing, "made", interrupted)
        patch.setattr(journal, "_FLUSH_BYTES", 1)
        with pytest.raises(KeyboardInterrupt):
            conversion.run()
    return folder
