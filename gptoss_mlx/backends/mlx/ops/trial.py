"""Trials of Metal kernels against their references, at the first use of each pipeline.

A GPU may refuse a pipeline, compute something else with it, or be slower with it. So before a
pipeline is used it is run on the arguments of its first call, with fewer and fewer threads to a
threadgroup until the GPU takes it, compared with its reference, and raced against it. The verdict
holds for that pipeline alone: a kernel for one token may be refused where the one for prompts is
not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import mlx.core as mx
import numpy as np

from gptoss_mlx.backends.kernels import agreement
from gptoss_mlx.backends.mlx.ops.matrix import Matrix, Norm
from gptoss_mlx.backends.mlx.ops.metal import Pipeline
from gptoss_mlx.backends.mlx.ops.mxfp4 import Projection
from gptoss_mlx.backends.mlx.ops.routing import Routing
from gptoss_mlx.backends.mlx.ops.verdicts import Verdict, Verdicts
from gptoss_mlx.errors import KernelError

WIDENED = 128 << 20  # bytes of an array up to which the reference is given it in float32
SLOWER = 1.05  # times the reference's time; a smaller difference is noise
PAIRS = 7  # timings of each, alternating
SAMPLE = 2e-3  # seconds that a timing takes at least, within MOST_CALLS
MOST_CALLS = 16  # calls in one timing

Clock = Callable[[], float]
Call = Callable[[], Any]


class Untried(Exception):
    """A call needs a pipeline that has no verdict yet."""


class Trials:
    """Verdicts on pipelines, found by trials: the threads of each one's threadgroup, as `Threads`.

    clock: in seconds; None where nothing is raced. insist: raise KernelError rather than fall back.
    """

    def __init__(self, verdicts: Verdicts, clock: Clock | None = None, *, insist: bool = False):
        self.verdicts, self.insist, self._clock = verdicts, insist, clock
        self.rejected: dict[str, str] = {}
        """Kernels of which some pipeline is not used, and why."""
        self.before: Callable[[], None] | None = None
        """Called before anything is computed for a trial."""
        self.known: dict[Pipeline, int] = {}
        """Threads of a threadgroup of each pipeline with a verdict, 0 if the reference computes."""
        self._attempt: int | None = None
        self._tried: dict[Pipeline, int] = {}
        self._fewer = self._failed = False

    def __call__(self, pipeline: Pipeline, sizes: Sequence[int]) -> int:
        """As `Threads`. Raises Untried if the pipeline has no verdict and no trial is running."""
        known = self.known.get(pipeline)
        if known is None:
            known = self._kept(pipeline, sizes)
        if known is not None:
            return known
        if self._attempt is None:
            raise Untried(str(pipeline))
        self._fewer |= self._attempt + 1 < len(sizes)
        self._tried[pipeline] = sizes[min(self._attempt, len(sizes) - 1)]
        return self._tried[pipeline]

    def _kept(self, pipeline: Pipeline, sizes: Sequence[int]) -> int | None:
        """The threads that an earlier start has found, None if it has not or they do not apply."""
        verdict = self.verdicts.of(pipeline)
        if verdict is None or verdict.threads not in (0, *sizes):
            return None
        if verdict.threads == 0 and self.insist:
            return None
        self._note(pipeline, verdict)
        return verdict.threads

    def _note(self, pipeline: Pipeline, verdict: Verdict) -> None:
        self.known[pipeline] = verdict.threads
        if verdict.threads == 0:
            self.rejected[pipeline.kernel] = verdict.why

    def run(self, kernel: Call, reference: Call, exact: Call) -> None:
        """Try all pipelines that a call of the kernel needs and that have no verdict.

        exact: the reference on the same arguments in float32.

        Raises KernelError if the kernel cannot be used and is insisted on.
        """
        if self.before is not None:
            self.before()
        expected = _flat(exact())
        mx.eval(expected)
        attempt = 0
        while True:
            why = self._why_not(attempt, kernel, reference, expected)
            if not why or not self._fewer:
                break
            attempt += 1
        if why and self.insist:
            names = ", ".join(pipeline.kernel for pipeline in self._tried)
            raise KernelError(f"the Metal kernel {names} cannot be used: {why}")
        found = {p: Verdict(0 if why else n, why) for p, n in self._tried.items()}
        for pipeline, verdict in found.items():
            self._note(pipeline, verdict)
        if not self._failed:  # a failure may be a lack of memory: it is tried at the next start
            self.verdicts.add(found)

    def _why_not(
        self, attempt: int, kernel: Call, reference: Call, expected: Sequence[mx.array]
    ) -> str:
        """Why a kernel cannot be used with the attempt's threads; "" if it can."""
        self._attempt, self._tried = attempt, {}
        self._fewer = self._failed = False
        try:
            found = _flat(kernel())
            mx.eval(found)
            difference = disagreement(found, expected)
            if not difference <= max(agreement(a.dtype) for a in found):
                return f"it differs from its reference by {difference:.1e}"
            taken = 0.0 if self._clock is None else race(kernel, reference, self._clock)
            return f"it takes {taken:.2f} times its reference's time" if taken > SLOWER else ""
        except (RuntimeError, ValueError) as error:
            # MLX raises these where Metal does not compile a kernel or refuses its threadgroup.
            self._failed = True
            return " ".join(str(error).split()) or type(error).__name__
        finally:
            self._attempt = None


class Tried:
    """An operation computed by its Metal kernels, if trials have accepted them, else by its
    reference. names: the kernels'."""

    def __init__(
        self,
        names: Sequence[str],
        kernel: Callable[..., Any],
        reference: Callable[..., Any],
        trials: Trials,
    ) -> None:
        self.names, self.trials = names, trials
        self._kernel, self._reference = kernel, reference

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        try:
            return self._kernel(*arguments, **options)
        except Untried:
            wide = [_widened(argument) for argument in arguments]
            named = {name: _widened(option) for name, option in options.items()}
            self.trials.run(
                lambda: self._kernel(*arguments, **options),
                lambda: self._reference(*arguments, **options),
                lambda: self._reference(*wide, **named),
            )
            return self._kernel(*arguments, **options)

    @property
    def rejected(self) -> str:
        """Its kernels that are not used, and why; "" where all are."""
        found = self.trials.rejected
        return "; ".join(f"{name}: {found[name]}" for name in self.names if name in found)


def race(kernel: Call, reference: Call, clock: Clock) -> float:
    """The kernel's time over its reference's: the median ratio of alternating timings."""
    once = max(_timed(reference, 1, clock), 1e-9)
    calls = min(MOST_CALLS, math.ceil(SAMPLE / once))
    ratios = []
    for _ in range(PAIRS):
        ours = _timed(kernel, calls, clock)
        ratios.append(ours / max(_timed(reference, calls, clock), 1e-9))
    return median(ratios)


def _timed(call: Call, calls: int, clock: Clock) -> float:
    begun = clock()
    mx.eval([_flat(call()) for _ in range(calls)])
    return clock() - begun


def disagreement(found: Sequence[mx.array], expected: Sequence[mx.array]) -> float:
    """The largest relative L2 error of the outputs; infinite where integers or shapes differ."""
    return max(map(_disagreement, found, expected), default=0.0)


def _disagreement(found: mx.array, expected: mx.array) -> float:
    floating = mx.issubdtype(expected.dtype, mx.floating)
    if found.shape != expected.shape or mx.issubdtype(found.dtype, mx.floating) != floating:
        return math.inf
    if not floating:
        return 0.0 if bool(mx.array_equal(found, expected)) else math.inf
    a, b = (np.asarray(x.astype(mx.float32)).astype(np.float64) for x in (found, expected))
    off = float(np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), 1e-30))
    return off if math.isfinite(off) else math.inf


def _widened(argument: Any) -> Any:
    """The argument with its bfloat16 arrays, also nested ones, in float32 if not too large."""
    if isinstance(argument, mx.array):
        wide = argument.dtype == mx.bfloat16 and argument.nbytes <= WIDENED
        return argument.astype(mx.float32) if wide else argument
    if isinstance(argument, Matrix):
        weight, scales, biases = map(_widened, (argument.weight, argument.scales, argument.biases))
        return Matrix(weight, scales, biases, argument.spec)
    if isinstance(argument, Norm):
        return Norm(_widened(argument.weight), argument.eps)
    if isinstance(argument, Projection | Routing):
        return type(argument)(*map(_widened, argument))
    if type(argument) in (list, tuple):
        return type(argument)(map(_widened, argument))
    return argument


def _flat(outputs: Any) -> Sequence[mx.array]:
    return [outputs] if isinstance(outputs, mx.array) else list(outputs)
