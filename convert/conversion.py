"""One conversion: a source, a destination and a recipe, checked against each other before work."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from gptoss_mlx.checkpoint import UNFINISHED, Progress
from gptoss_mlx.errors import CheckpointError, ConversionError
from gptoss_mlx.recipe import RECIPES

from . import destination, plan, verify
from .manifest import read_manifest
from .plan import Plan
from .source import MANIFEST, Source
from .sources import open_source


@dataclass(frozen=True)
class Conversion:
    """What is to be done, known from headers alone."""

    source: Source
    plan: Plan
    folder: Path

    @classmethod
    def prepare(
        cls, path: Path, folder: Path, *, target: str, recipe: str, name: str | None = None
    ) -> Conversion:
        """target: "mlx" or "release", for which the recipe says nothing. name: of the source.

        Raises CheckpointError for the source, ConversionError for the folder.
        """
        source = open_source(path, exact=target == "release")
        source = source if name is None else replace(source, name=name)
        _check_apart(path, folder)
        made = (
            plan.to_release(source)
            if target == "release"
            else (plan.to_mlx(source, RECIPES[recipe]))
        )
        return cls(source, made, folder)

    @property
    def is_complete(self) -> bool:
        """Whether the folder holds this very conversion, finished."""
        if self.is_begun or not all(destination.is_there(self.folder, f) for f in self.plan.files):
            return False
        if self.plan.target == "release":
            return not (self.folder / MANIFEST).exists()
        try:
            found = read_manifest(self.folder)
        except CheckpointError:
            return False
        source = {"kind": self.source.kind, "name": self.source.name}
        return found.get("source") == source and found.get("recipe") == self.plan.recipe

    @property
    def is_begun(self) -> bool:
        return (self.folder / UNFINISHED).exists()

    def run(self, resume: str, progress: Progress | None = None) -> None:
        """Write it, or what is left of it. Raises ConversionError and CheckpointError."""
        if not self.is_begun and self.folder.exists() and any(self.folder.iterdir()):
            raise ConversionError(
                f"{self.folder}: exists and is not an unfinished conversion; choose another folder"
            )
        destination.check_room(self.plan, self.folder)
        destination.write(self.source, self.plan, self.folder, resume, progress)

    def verify(self, progress: Progress | None = None) -> int:
        """Tensors compared with the source. Raises ConversionError for a difference."""
        return verify.verify(self.source, self.plan, self.folder, progress)


def _check_apart(path: Path, folder: Path) -> None:
    """Neither may lie in the other; beside a file that is the source there is room."""
    home = (path if path.is_dir() else path.parent).resolve()
    there = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise ConversionError(f"{folder}: is a file; the result is a folder")
    inside = path.is_dir() and home in there.parents
    if there == home or inside or there in home.parents:
        raise ConversionError(f"{folder}: is the source, or in it or around it; choose another")
