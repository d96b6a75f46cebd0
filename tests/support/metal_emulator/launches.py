"""What a launch did: shapes, bytes, and the traffic between simdgroups and memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from .operations import Operations


@dataclass(frozen=True)
class Traffic:
    """What crossed between simdgroups and one buffer, counted in a traced launch.

    A simdgroup access is one execution of one load or store by a simdgroup's lanes together.
    """

    read_bytes: int
    """Requested by threads."""
    written_bytes: int
    accesses: int
    """Of simdgroups, reads and writes."""
    lines: int
    """Distinct lines of 128 bytes, summed over accesses."""
    fewest_lines: int
    """The fewest lines that could have held each access's distinct bytes, summed."""
    distinct_bytes: int
    """Of each access, summed: less than requested where lanes ask for the same bytes."""
    touched_read: int
    """Distinct bytes read at least once in the launch."""
    touched_written: int


@dataclass(frozen=True)
class Array:
    """An input or output of a launch."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


@dataclass(frozen=True)
class Launch:
    """One call of a kernel. Counts of traffic are there if it was traced, else empty or 0."""

    name: str
    text: str
    grid: tuple[int, int, int]
    threadgroup: tuple[int, int, int]
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    threadgroups: int
    barriers: int
    """Of threadgroups, summed over them."""
    simd_operations: int
    multiplications: int
    """Of 8x8 simdgroup matrices."""
    threadgroup_bytes: int
    """Threadgroup memory of one threadgroup."""
    seconds: float
    unwritten: dict[str, int] = field(default_factory=dict)
    """Bytes of each output that no thread wrote; in checked launches."""
    traffic: dict[str, Traffic] = field(default_factory=dict)
    threadgroup_read: int = 0
    """Bytes of threadgroup memory read by threads."""
    threadgroup_written: int = 0
    operations: Operations | None = None
    """Of all threads; in counted launches."""
    threadgroup_accesses: int = 0
    """Of simdgroups to threadgroup memory."""
