"""Loops of a kernel: a thread tells which turn of each loop around it is the present one.

A simdgroup's lanes execute a load together if they are in the same turn, also where some of them
skipped the load in an earlier one. Calls put into LLVM text keep count: one more turn at the end of
a block that jumps back to its loop's head; back to none in blocks after a loop.
"""

from __future__ import annotations

from . import blocks

DECLARATIONS = "declare void @metal_loop_again(i32)\ndeclare void @metal_loop_left(i32)"
Edges = dict[str, list[str]]


def instrumented(text: str) -> str:
    """LLVM text in which every loop counts its turns."""
    return blocks.rewritten(text, _with_turns, DECLARATIONS)


def _with_turns(lines: list[str]) -> list[str]:
    parts = list(blocks.blocks(lines))
    after = {blocks.name(part): blocks.targets(part) for part in parts}
    loops = natural_loops(after)
    depth = {block: sum(block in body for body in loops.values()) for block in after}
    out: list[str] = []
    for part in parts:
        block = blocks.name(part)
        last, first = blocks.end(part), blocks.begin(part)
        again = [h for h in after[block] if h in loops and block in loops[h]]
        entered = [h for h in after[block] if h in loops and block not in loops[h]]
        ending = [_call("again", depth[h]) for h in again[:1]]
        if entered and not again:
            ending = [_call("left", min(depth[h] for h in entered) - 1)]
        deeper = any(depth[p] > depth[block] for p in after if block in after[p])
        leaving = [_call("left", depth[block])] if deeper else []
        out += [*part[:first], *leaving, *part[first:last], *ending, *part[last:]]
    return out


def _call(what: str, depth: int) -> str:
    return f"  call void @metal_loop_{what}(i32 {depth})"


def natural_loops(after: Edges) -> dict[str, set[str]]:
    """The blocks of each loop by its head; `after` lists the entry first."""
    before: Edges = {block: [] for block in after}
    for block, targets in after.items():
        for target in targets:
            before[target].append(block)
    over = dominators(after, before)
    loops: dict[str, set[str]] = {}
    for block, targets in after.items():
        for head in targets:
            if head in over[block]:
                body = loops.setdefault(head, {head})
                waiting = [block]
                while waiting:
                    if (one := waiting.pop()) not in body:
                        body.add(one)
                        waiting += before[one]
    return loops


def dominators(after: Edges, before: Edges) -> dict[str, set[str]]:
    """For each block those that every way to it passes, itself too."""
    entry, *others = after
    over = {block: set(after) for block in others} | {entry: {entry}}
    changed = True
    while changed:
        changed = False
        for block in others:
            ways = [over[p] for p in before[block]]
            new = {block} | (set.intersection(*ways) if ways else set())
            if new != over[block]:
                over[block], changed = new, True
    return over
