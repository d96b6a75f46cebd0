"""Trials of kernels on a device that is made up: what it refuses, and how long it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import pytest

from gptoss_mlx.backends.mlx.ops.metal import Pipeline, Threads
from gptoss_mlx.backends.mlx.ops.trial import MOST_CALLS, PAIRS, SLOWER, Trials, Tried, race
from gptoss_mlx.backends.mlx.ops.verdicts import Verdict, Verdicts

SIZES = (768, 512, 256)


@dataclass
class Device:
    """Doubles x with kernels it is told about, and a clock that only they move.

    limits: of each kernel the most threads it takes. wrong: kernels that give something else.
    times: seconds a call of each takes, the reference's under "reference".
    """

    limits: dict[str, int] = field(default_factory=dict)
    wrong: set[str] = field(default_factory=set)
    times: dict[str, float] = field(default_factory=dict)
    launched: list[tuple[str, int]] = field(default_factory=list)
    now: float = 0.0

    def clock(self) -> float:
        return self.now

    def reference(self, x: mx.array, **_: Any) -> mx.array:
        self.now += self.times.get("reference", 1.0)
        return 2 * x

    def kernel(self, threads: Threads) -> Callable[..., mx.array]:
        """An operation of two kernels: "few" for up to eight rows, else "many"."""

        def run(x: mx.array, merged: bool = False) -> mx.array:
            names = ["few" if len(x) <= 8 else "many", *(["merge"] if merged else [])]
            shapes: list[Sequence[int]] = [SIZES, (64,)]
            sizes = [
                threads(Pipeline(name, (x.dtype, x.shape[1])), among)
                for name, among in zip(names, shapes, strict=False)
            ]
            if 0 in sizes:
                return self.reference(x)
            return self._launch(x, list(zip(names, sizes, strict=True)))

        return run

    def _launch(self, x: mx.array, launches: list[tuple[str, int]]) -> mx.array:
        for name, threads in launches:
            self.launched.append((name, threads))
            self.now += self.times.get(name, 0.5)
            if threads > self.limits.get(name, 1024):
                # As MLX words it, when the array is evaluated.
                raise ValueError(
                    f"Thread group size ({threads}) is greater than  the maximum allowed threads"
                    f" per threadgroup ({self.limits[name]})."
                )
        return 2 * x + any(name in self.wrong for name, _ in launches)

    def operation(self, verdicts: Verdicts, *, raced: bool = False, insist: bool = False) -> Tried:
        trials = Trials(verdicts, self.clock if raced else None, insist=insist)
        return Tried(("few", "many", "merge"), self.kernel(trials), self.reference, trials)


FEW, MANY = mx.ones((1, 4)), mx.ones((20, 4))


def nowhere() -> Verdicts:
    return Verdicts({}, None)


def right(y: mx.array) -> bool:
    return bool((y == 2).all())


@pytest.mark.parametrize(("limit", "threads"), [(1024, 768), (700, 512), (512, 512), (300, 256)])
def test_the_most_threads_that_the_device_takes(limit: int, threads: int) -> None:
    device = Device({"few": limit})
    run = device.operation(nowhere())
    assert right(run(FEW))
    device.launched.clear()
    assert right(run(FEW))
    assert device.launched == [("few", threads)]
    assert not run.rejected


def test_a_kernel_refused_at_every_size_takes_no_other_with_it() -> None:
    device = Device({"few": 128})
    run = device.operation(nowhere())
    assert right(run(FEW))
    assert right(run(MANY))
    device.launched.clear()
    assert right(run(FEW))
    assert device.launched == []
    assert right(run(MANY))
    assert device.launched == [("many", 768)]
    assert run.rejected.startswith("few: Thread group size (256) is greater than the maximum")


def test_each_shape_is_tried_for_itself() -> None:
    device = Device(wrong={"few"})
    run = device.operation(nowhere())
    assert right(run(FEW))
    device.wrong.clear()
    assert right(run(mx.ones((1, 8))))
    device.launched.clear()
    run(FEW)
    run(mx.ones((1, 8)))
    assert device.launched == [("few", 768)]


def test_of_two_kernels_in_a_call_each_has_its_own_sizes() -> None:
    device = Device({"few": 400})
    run = device.operation(nowhere())
    assert right(run(FEW, merged=True))
    device.launched.clear()
    run(FEW, merged=True)
    assert device.launched == [("few", 256), ("merge", 64)]


@pytest.mark.parametrize(("taken", "used"), [(0.5, True), (1.04, True), (1.06, False), (3, False)])
def test_a_slower_kernel_is_left_out(taken: float, used: bool) -> None:
    device = Device(times={"few": taken, "reference": 1.0})
    run = device.operation(nowhere(), raced=True)
    assert right(run(FEW))
    device.launched.clear()
    run(FEW)
    assert bool(device.launched) == used
    slower = f"few: it takes {taken:.2f} times its reference's time"
    assert run.rejected == ("" if used else slower)


def test_a_single_slow_timing_decides_nothing() -> None:
    device, hiccups = Device(times={"few": 0.5}), iter([9.0, 9.0, 9.0])

    def kernel() -> mx.array:
        device.now += next(hiccups, 0.5)
        return FEW

    def reference() -> mx.array:
        device.now += 1.0
        return FEW

    assert race(kernel, reference, device.clock) == 0.5
    assert PAIRS > 6
    assert SLOWER < 1.1


def test_short_calls_are_timed_several_at_once() -> None:
    device, calls = Device(), list[str]()

    def timed(name: str, seconds: float) -> Callable[[], mx.array]:
        def call() -> mx.array:
            calls.append(name)
            device.now += seconds
            return FEW

        return call

    assert race(timed("ours", 1e-5), timed("reference", 2e-5), device.clock) == pytest.approx(0.5)
    assert calls.count("ours") == PAIRS * MOST_CALLS
    calls.clear()
    race(timed("ours", 0.1), timed("reference", 0.2), device.clock)
    assert calls.count("ours") == PAIRS


def test_what_was_found_is_not_tried_again(tmp_path: Any) -> None:
    machine = {"chip": "Apple M2", "source": "1"}
    device = Device({"few": 600}, times={"many": 2.0})
    run = device.operation(Verdicts(machine, tmp_path), raced=True)
    run(FEW)
    run(MANY)
    again = Device({"few": 600}, times={"many": 2.0})
    run = again.operation(Verdicts(machine, tmp_path), raced=True)
    assert right(run(FEW))
    assert right(run(MANY))
    assert again.launched == [("few", 512)]
    assert run.rejected == "many: it takes 2.00 times its reference's time"
    other = Device()
    other.operation(Verdicts({**machine, "source": "2"}, tmp_path))(FEW)
    assert other.launched[0] == ("few", 768)


def test_what_failed_to_run_is_tried_again_at_the_next_start(tmp_path: Any) -> None:
    device = Device({"few": 0})  # as where there is no memory
    device.operation(Verdicts({}, tmp_path))(FEW)
    later = Device()
    run = later.operation(Verdicts({}, tmp_path))
    assert right(run(FEW))
    assert later.launched[-1] == ("few", 768)
    assert not run.rejected


def test_insisting_tries_again_what_was_refused(tmp_path: Any) -> None:
    device = Device(times={"few": 2.0})
    device.operation(Verdicts({}, tmp_path), raced=True)(FEW)
    run = device.operation(Verdicts({}, tmp_path), insist=True)
    device.launched.clear()
    assert right(run(FEW))
    assert device.launched == [("few", 768), ("few", 768)]


def test_a_size_that_a_kernel_no_longer_has_is_tried_anew() -> None:
    verdicts = nowhere()
    pipeline = Pipeline("few", (mx.float32, 4))
    verdicts.add({pipeline: Verdict(96)})
    device = Device()
    assert right(device.operation(verdicts)(FEW))
    assert verdicts.of(pipeline) == Verdict(768)


def test_nothing_is_computed_before_what_must_come_first() -> None:
    device, order = Device(), list[str]()
    run = device.operation(nowhere())
    run.trials.before = lambda: order.append(f"before, {len(device.launched)} launched")
    run(FEW)
    run(FEW)
    assert order == ["before, 0 launched"]
