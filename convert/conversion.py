"""One conversion: a source, a destination and a recipe, checked against each other before work."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from gptoss_mlx.errors import ConversionError
from gptoss_mlx.models.checkpoint import UNFINISHED, Progress
from gptoss_mlx.spec.recipe import RECIPES

from . import destination, plan, verify
from . import state as states
from .manifest import sizes
from .plan import Plan, Task
from .source import Source
from .sources import open_source
from .state import State


@dataclass(frozen=True)
class Conversion:
    """A conversion to be done: source, plan and folder, known from headers alone."""

    source: Source
    plan: Plan
    folder: Path

    @classmethod
    def prepare(
        cls, path: Path, folder: Path, *, target: str, recipe: str, name: str | None = None
    ) -> Conversion:
        """Open the source and plan its conversion into a folder.

        target: "mlx" or "release", which has no use for the recipe. name: of the source, if not the
        path's.
        Raises CheckpointError for the source, ConversionError for the folder.
        """
        source = open_source(path, exact=target == "release")
        source = source if name is None else replace(source, name=name)
        _ = source.stamp  # from here on a change of the source is detected
        _check_apart(path, folder)
        made = (
            plan.to_release(source)
            if target == "release"
            else (plan.to_mlx(source, RECIPES[recipe]))
        )
        return cls(source, made, folder)

    def check(self) -> State:
        """What the folder holds. Raises, as `run` would, ConversionError or CheckpointError for a
        folder that is for something else or a disk without room.
        """
        state = states.state(self.source, self.plan, self.folder)
        if state != "complete":
            states.check_room(self.source, self.plan, self.folder)
        elif self.plan.target == "release":  # a release has no manifest that names its source
            verify.compare_samples(self.source, self.plan, self.folder)
        return state

    @property
    def is_begun(self) -> bool:
        return os.path.lexists(self.folder / UNFINISHED)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all files of the result."""
        return sum(sizes(self.source, self.plan).values())

    @property
    def to_write(self) -> int:
        """Bytes that `run` will write, if what is there is as it was written."""
        return states.to_write(self.source, self.plan, self.folder)

    @cached_property
    def note(self) -> str | None:
        """A note if some weights of the source have fewer bits than in the result, which gives back
        no quality; None if not."""
        least = min((_bits(task) for task in self.plan.tasks if _grows(task)), default=None)
        if least is None:
            return None
        return (
            f"{self.source.name}: holds weights in {least:.1f} bits each that become larger here;"
            " their quality stays that of the source"
        )

    def run(self, progress: Progress | None = None) -> int:
        """Write the result, or the rest of it; returns the bytes written. Raises as `check`
        does."""
        if self.check() == "complete":
            return 0
        return destination.write(self.source, self.plan, self.folder, progress)

    def verify(self, progress: Progress | None = None) -> int:
        """Compare the result with the source; returns how many tensors were compared.

        Raises ConversionError for a difference.
        """
        return verify.verify(self.source, self.plan, self.folder, progress)


def _grows(task: Task) -> bool:
    """Whether it takes more bytes than in its source; experts never do."""
    inputs = sum(tensor.nbytes for tensor in task.piece.inputs)
    return ".experts." not in task.outputs[0].name and inputs < task.nbytes


def _bits(task: Task) -> float:
    values = task.piece.nbytes // 2  # all but experts are bfloat16 as released
    return 8 * sum(tensor.nbytes for tensor in task.piece.inputs) / values


def _check_apart(path: Path, folder: Path) -> None:
    """Raises ConversionError if the source's folder and the result's lie in each other or are one.

    The result may lie beside a file that is the source.
    """
    try:
        home = (path if path.is_dir() else path.parent).resolve()
        there = folder.resolve()
        is_file = folder.exists() and not folder.is_dir()
    except (OSError, RuntimeError) as error:  # what a circle of links is, up to Python 3.12
        reason = getattr(error, "strerror", None) or "is a link to itself"
        raise ConversionError(f"{folder}: cannot be a folder: {reason}") from error
    if is_file:
        raise ConversionError(f"{folder}: is a file; the result is a folder")
    inside = path.is_dir() and home in there.parents
    if there == home or inside or there in home.parents:
        raise ConversionError(f"{folder}: is the source, or in it or around it; choose another")
