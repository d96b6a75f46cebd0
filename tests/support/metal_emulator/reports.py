"""The runtime's reports as lines a person can act on."""

from __future__ import annotations

from .compiler import Compiled
from .lines import lines_of
from .runtime import NOBODY, Outcome, Report
from .text import Place

KINDS = ("read", "write", "atomic operation")


def describe(outcome: Outcome, compiled: Compiled) -> str:
    """One line a report: `file:line: what happened | the line`."""
    base = outcome.totals.code_base
    codes = {c - base for r in outcome.reports for c in (r.code, r.other_code) if c}
    places = lines_of(compiled.object, compiled.text, sorted(codes))
    rows = []
    for report in outcome.reports:
        place = places.get(report.code - base)
        other = places.get(report.other_code - base) if report.other_code else None
        text = message(report, other)
        rows.append(f"{place}: {text} | {compiled.text.row(place)}" if place else text)
    return "\n".join(dict.fromkeys(rows))


def message(r: Report, other: Place | None) -> str:
    """What happened, without where."""
    where = f"{r.region.decode()}{r.offset:+d}"
    access = f"{KINDS[r.kind]} of {r.size} bytes at {where}"
    me = f"thread {r.thread} of threadgroup {r.group}"
    at = f" at {other}" if other else ""
    texts = (
        lambda: race(r, access, me, at),
        lambda: (
            f"race across threadgroups: {access} by {me} conflicts with "
            f"the {KINDS[r.other_kind]} by {whose(r)}{at}"
        ),
        lambda: f"out of bounds: {access} by {me}",
        lambda: f"misaligned: {access} by {me}",
        lambda: f"uninitialised: {access} by {me}, which nobody wrote",
        lambda: f"write to read-only memory: {r.size} bytes at {where} by {me}",
        lambda: f"divergent barrier: {me} waits here, thread {r.other_thread}{at}",
        lambda: f"divergent barrier: only {r.offset} threads of threadgroup {r.group} reach it",
        lambda: f"divergent simdgroup operation: {me} waits here, thread {r.other_thread}{at}",
        lambda: f"simdgroup operation reads lane {r.offset}, which is inactive: {me}",
        lambda: (
            f"{r.offset} bytes of threadgroup memory with {r.region.decode()}, "
            f"the limit is {r.size}"
        ),
        lambda: f"out of bounds: index {r.offset} of an array: {me}",
        lambda: f"endless: more than {r.offset} accesses",
    )
    return texts[r.fault]()


def race(r: Report, access: str, me: str, at: str) -> str:
    """Two threads of one threadgroup, one memory, nothing between."""
    between = "no barrier between them"
    if r.hint:
        between = "the barrier between them lacks the flag of this memory or covers one simdgroup"
    other = f"thread {r.other_thread}" if r.other_thread != NOBODY else "several threads"
    return (
        f"race: {access} by {me} conflicts with the {KINDS[r.other_kind]} by {other}{at}: {between}"
    )


def whose(r: Report) -> str:
    """The other side of a race across threadgroups."""
    if r.other_group == NOBODY:
        return "several threadgroups"
    return f"threadgroup {r.other_group}"
