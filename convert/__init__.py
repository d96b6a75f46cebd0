"""Released gpt-oss weights -> MLX format, and back.

`python -m convert SOURCE DEST` (installed: `gptoss-convert`). Experts are copied bit for bit,
everything else is kept in bfloat16 or quantized by a recipe. A source is described as pieces of
the released layout (`piece`, `sources/`), a recipe and a layout make a plan (`recipe`, `plan`), and
`destination` writes it so that any interruption can be resumed.
"""

import os
import sys


def _leave_current_folder() -> None:
    """Take the current folder off sys.path, as gptoss_mlx.launch does, before gptoss_mlx itself
    could be imported from there."""
    try:
        here = os.getcwd()
    except OSError:
        return
    if here != os.path.dirname(__path__[0]):
        sys.path[:] = [path for path in sys.path if os.path.abspath(path) != here]


if sys.argv[:1] == ["-m"]:
    _leave_current_folder()

import gptoss_mlx  # noqa: E402, F401
