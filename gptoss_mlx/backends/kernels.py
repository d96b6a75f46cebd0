"""The choice of kernels, as all backends make it: what a user may ask for, and the tolerance.

A kernel of our own is used where it agrees with its reference, the same operation in the library's
own calls; where it does not, the reference computes in its place, and the reason is reported.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from gptoss_mlx.errors import KernelError

VARIABLE = "GPTOSS_KERNELS"
"""Environment variable: "metal" or "triton" insists on the kernels, "reference" uses none."""

_AGREEMENT = {"float32": 1e-3, "bfloat16": 1e-2}


def agreement(dtype: object) -> float:
    """The tolerance: the largest relative L2 error of a kernel against its reference, which
    computes in float32 from the same values; a GPU may multiply float32 in fewer bits.
    0 for any other dtype than float32 and bfloat16."""
    return _AGREEMENT.get(str(dtype).rpartition(".")[2], 0.0)


def policy_of(asked: str | None, language: str, *, possible: Callable[[], bool], where: str) -> str:
    """The policy in force: `language` insists on kernels, "reference" uses none, "" lets the device
    decide.

    asked: None for what the environment says. possible: whether kernels can run on this device,
    called only if they are insisted on. where: what the device is, for the message.
    Raises KernelError if the policy is unknown, or if it insists on kernels that cannot run.
    """
    policy = os.environ.get(VARIABLE, "") if asked is None else asked
    if policy not in ("", language, "reference"):
        raise KernelError(f'{VARIABLE} is "{policy}"; it may be "{language}" or "reference"')
    if policy == language and not possible():
        raise KernelError(f'{VARIABLE} is "{language}", but {where}')
    return policy
