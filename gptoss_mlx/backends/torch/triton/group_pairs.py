"""Grouping of (token, expert) pairs by the slot they visit: a stable sort.

Few pairs are sorted by one program that compares each with each. For many, one kernel counts the
pairs of each block by slot, and a second one places each block's pairs. All sums are of integers
and no two programs write to one place, so that the result is deterministic.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from gptoss_mlx.backends.torch import reference
from gptoss_mlx.backends.torch.operands import Groups, most_tiles

FEW = 128  # pairs up to which one program compares each with each: 16,384 comparisons
BLOCK = 128  # pairs to a program where there are more
ROWS = 32  # blocks whose counts are summed at a time
MOST_SLOTS = 256  # a block compares each of its pairs with each slot

_FAR = tl.constexpr(2**30)  # sorts behind every slot
_FIELD = tl.constexpr(2**10)  # base of the packed sums, above FEW


@triton.jit
def group(visit, pair, used, order, slot, begin, end, tiles, TILE: tl.constexpr, P: tl.constexpr):
    """Group all pairs: visit [P], their slots; used [P]; pair [P], their numbers, ascending."""
    # Sums are over rows, which lie in one thread's registers; an integer packs several small sums.
    place = tl.arange(0, P)
    key = tl.where(used, visit, _FAR // P) * P + place
    earlier = (key[:, None] < key[None, :]).to(tl.int32)
    same = ((visit[:, None] == visit[None, :]) & used[:, None]).to(tl.int32)
    sums = tl.sum(earlier + same * (_FIELD * _FIELD + _FIELD * earlier), axis=0)
    rank = sums % _FIELD
    nth = sums // _FIELD % _FIELD
    count = sums // (_FIELD * _FIELD)
    first = used & (nth % TILE == 0)
    sums = tl.sum(tl.where(first[:, None], _FIELD + earlier, 0), axis=0)
    tile = sums % _FIELD
    tl.store(order + rank, pair, mask=used)
    tl.store(slot + tile, visit, mask=first)
    tl.store(begin + tile, rank, mask=first)
    tl.store(end + tile, rank + tl.minimum(count - nth, TILE), mask=first)
    idle = (place >= sums // _FIELD) & (place < tiles)
    zero = tl.zeros([P], tl.int32)
    tl.store(slot + place, zero - 1, mask=idle)
    tl.store(begin + place, zero, mask=idle)
    tl.store(end + place, zero, mask=idle)


@triton.jit(do_not_specialize=["pairs", "tiles"])
def group_kernel(
    visits, order, slot, begin, end, pairs, tiles, TILE: tl.constexpr, P: tl.constexpr
):
    # One program does it all. visits [pairs], pairs <= P; slot, begin, end [tiles].
    pair = tl.arange(0, P)
    used = pair < pairs
    visit = tl.load(visits + pair, mask=used, other=0).to(tl.int32)
    group(visit, pair, used, order, slot, begin, end, tiles, TILE, P)


@triton.jit(do_not_specialize=["pairs"])
def count_kernel(visits, counts, pairs, slots, BLOCK: tl.constexpr, S: tl.constexpr):
    # A program counts one block of pairs: counts [blocks, slots].
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    visit = tl.load(visits + pair, mask=pair < pairs, other=-1).to(tl.int32)
    s = tl.arange(0, S)
    count = tl.sum((visit[:, None] == s[None, :]).to(tl.int32), axis=0)
    tl.store(counts + tl.program_id(0) * slots + s, count, mask=s < slots)


@triton.jit(do_not_specialize=["pairs", "tiles", "blocks"])
def place_kernel(
    visits,
    counts,
    order,
    slot,
    begin,
    end,
    pairs,
    tiles,
    blocks,
    slots,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    S: tl.constexpr,
):
    # A program places one block of pairs, and writes as many tiles.
    block = tl.program_id(0)
    s = tl.arange(0, S)
    total = tl.zeros([S], tl.int32)
    before = tl.zeros([S], tl.int32)
    for start in range(0, blocks, ROWS):
        b = start + tl.arange(0, ROWS)[:, None]
        inside = (b < blocks) & (s[None, :] < slots)
        count = tl.load(counts + b * slots + s[None, :], mask=inside, other=0)
        total += tl.sum(count, axis=0)
        before += tl.sum(tl.where(b < block, count, 0), axis=0)
    stop = tl.cumsum(total, axis=0)

    i = tl.arange(0, BLOCK)
    pair = block * BLOCK + i
    visit = tl.load(visits + pair, mask=pair < pairs, other=0).to(tl.int32)
    same = (visit[:, None] == visit[None, :]) & (i[:, None] < i[None, :])
    nth = tl.sum(same.to(tl.int32), axis=0)
    rank = tl.gather(stop - total + before, visit, axis=0) + nth
    tl.store(order + rank, pair, mask=pair < pairs)

    full = (total + TILE - 1) // TILE
    last = tl.cumsum(full, axis=0)
    tile = pair
    at = tl.sum((last[:, None] <= tile[None, :]).to(tl.int32), axis=0)
    used = tile < tl.sum(full, axis=0)
    at = tl.where(used, at, 0)
    first = tl.gather(stop - total, at, axis=0) + TILE * (tile - tl.gather(last - full, at, axis=0))
    behind = tl.minimum(first + TILE, tl.gather(stop, at, axis=0))
    inside = tile < tiles
    tl.store(slot + tile, tl.where(used, at, -1), mask=inside)
    tl.store(begin + tile, tl.where(used, first, 0), mask=inside)
    tl.store(end + tile, tl.where(used, behind, 0), mask=inside)


def group_pairs(visits: torch.Tensor, slots: int, tile: int) -> Groups:
    """See `reference.group_pairs`: visits [tokens, k], each below `slots`."""
    pairs = visits.numel()
    if pairs > FEW and slots > MOST_SLOTS:
        return reference.group_pairs(visits, slots, tile)
    visits = visits.contiguous()
    groups = empty_groups(pairs, slots, tile, visits.device)
    columns = (groups.order, groups.slot, groups.begin, groups.end)
    tiles = len(groups.slot)
    if pairs <= FEW:
        size = triton.next_power_of_2(pairs)
        group_kernel[(1,)](visits, *columns, pairs, tiles, TILE=tile, P=size, num_warps=warps(size))
        return groups
    blocks, size = triton.cdiv(pairs, BLOCK), triton.next_power_of_2(slots)
    counts = torch.empty(blocks, slots, dtype=torch.int32, device=visits.device)
    count_kernel[(blocks,)](visits, counts, pairs, slots, BLOCK=BLOCK, S=size, num_warps=8)
    place_kernel[(blocks,)](
        *(visits, counts, *columns, pairs, tiles, blocks, slots),
        **{"TILE": tile, "BLOCK": BLOCK, "ROWS": ROWS, "S": size, "num_warps": 8},
    )
    return groups


def empty_groups(pairs: int, slots: int, tile: int, device: torch.device) -> Groups:
    """Uninitialized `Groups` for so many pairs, to be written by a kernel."""
    tiles = most_tiles(pairs, slots, tile)
    order, slot, begin, end = (
        torch.empty(size, dtype=torch.int32, device=device) for size in (pairs, tiles, tiles, tiles)
    )
    return Groups(order, slot, begin, end, tile)


def warps(size: int) -> int:
    """Warps for `group` with so many pairs: about 64 comparisons per thread."""
    return min(max(size * size // (32 * 64), 1), 8)


def examples(dtype: torch.dtype, device: torch.device | str) -> Iterator[tuple[Any, ...]]:
    """Arguments of small calls that reach every part of the kernels."""
    generator = torch.Generator().manual_seed(0)
    for tokens, k, slots, tile in ((1, 4, 32, 8), (27, 4, 9, 4), (100, 3, 7, 16), (300, 4, 37, 5)):
        visits = torch.randint(0, slots, (tokens, k), generator=generator, dtype=torch.int32)
        yield visits.to(device), slots, tile
