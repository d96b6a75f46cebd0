"""`Limits`: what a model's code may use."""

from __future__ import annotations

from dataclasses import dataclass, fields

from gptoss_mlx.errors import OptionError
from gptoss_mlx.files.jsonfile import shown


@dataclass(frozen=True)
class Limits:
    """What the code of one conversation may use; the defaults suit a laptop with 16 GB.

    wall, cpu: seconds of one call; cpu counts every process. grace: seconds between the interrupt
    of a call and its end by force. memory: bytes, of each process and of all together. output:
    characters of a call's text. processes: processes and threads at a time. folder, file: bytes of
    /mnt/data in all and of any one file; /tmp may take as much as the folder again. files: files
    and folders in /mnt/data. opened: open files of each process.

    Raises OptionError.
    """

    wall: float = 120.0
    cpu: float = 240.0
    grace: float = 3.0
    memory: int = 2 << 30
    output: int = 16_000
    processes: int = 128
    folder: int = 512 << 20
    file: int = 256 << 20
    files: int = 2000
    opened: int = 256

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = _LEAST.get(field.name, 0)
            if not isinstance(value, (int, float)) or not least <= value < 2**53:
                raise OptionError(
                    f"the limit {field.name} is {shown(value)}, but must be at least {least}"
                )


_LEAST = {
    "memory": 64 << 20,  # an interpreter's own
    "output": 200,
    "processes": 4,
    "folder": 1 << 20,
    "file": 4096,
    "files": 8,
    "opened": 32,
}
