"""What the choice of kernels has in common: what a person may ask for, and how near is near enough.

A kernel of our own is used where it agrees with its reference, the same operation in the library's
own calls; where it does not, the reference computes in its place, and a person is told why.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from gptoss_mlx.errors import KernelError

VARIABLE = "GPTOSS_KERNELS"
"""Environment variable: the kernels' language insists on them, "reference" does without."""

_AGREEMENT = {"float32": 1e-3, "bfloat16": 1e-2}


def agreement(dtype: object) -> float:
    """The relative L2 allowed between a kernel and its reference, which computes in float32 from
    the same values; a GPU may multiply float32 in fewer bits. 0 for what is no compute dtype."""
    return _AGREEMENT.get(str(dtype).rpartition(".")[2], 0.0)


def policy_of(asked: str | None, language: str, *, possible: Callable[[], bool], where: str) -> str:
    """The language, "reference", or "" for either as the device allows.

    asked: None for what the environment says. possible: whether kernels can run on this device,
    asked only where they are insisted on. where: what it is, for the message. Raises KernelError.
    """
    policy = os.environ.get(VARIABLE, "") if asked is None else asked
    if policy not in ("", language, "reference"):
        raise KernelError(f'{VARIABLE} is "{policy}"; it may be "{language}" or "reference"')
    if policy == language and not possible():
        raise KernelError(f'{VARIABLE} is "{language}", but {where}')
    return policy
