"""One tile of W x^T with W in MXFP4, shared by the two kernels of the experts.

The weights are the left operand, so that their rows fill a tensor core's 16 or 64 rows and 8 to 64
tokens are its columns: decoding and prefill use the same kernel. Packed bytes go unchanged to
shared memory and from there to registers, in the tensor cores' operand order. There they are
converted to bfloat16 eight at a time: 9 integer instructions for 8 weights and one multiplication
for each 2.

Alternatives that take more instructions per weight, on capability 9.0: tl.dot_scaled, 5.9 to 6.8;
scales loaded as single bytes, after which Triton orders operands by fours and moves registers, 3.4
instead of 3.0.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gptoss_mlx.backends.torch.mxfp4 import FIELDS, HELD, PLACE
from gptoss_mlx.backends.torch.triton.capability import INTERPRETED

_OFFSET = tl.constexpr((126 - HELD) * 0x00800080)  # added to the exponents of two multipliers
_UNDO = tl.constexpr(2.0**HELD)
_PLACE = tl.constexpr(PLACE)
_FIRST, _SECOND = tl.constexpr(FIELDS[3][2]), tl.constexpr(FIELDS[4][2])
_ROTATION_1, _ROTATION_2 = tl.constexpr(FIELDS[1][1]), tl.constexpr(FIELDS[2][1])
_ROTATION_3, _ROTATION_4 = tl.constexpr(FIELDS[3][1]), tl.constexpr(FIELDS[4][1])


def _ptx() -> str:
    """PTX: a bank's word $4 -> $0 to $3, two bfloat16 of each quarter, times the two in $5."""
    lines = [".reg .b32 w, zero;", "mov.b32 zero, 0x80008000;"]
    for i, (quarter, rotation, bits) in enumerate(FIELDS):
        word, mask = "w" if rotation else "$4", f"0x{bits << 16 | bits:08X}"
        if rotation:
            lines.append(f"shf.l.wrap.b32 w, $4, $4, {rotation};")
        if i and FIELDS[i - 1][0] == quarter:  # (word & mask) | the quarter's other bits
            lines.append(f"lop3.b32 ${quarter}, {word}, {mask}, ${quarter}, 0xEA;")
        else:
            lines.append(f"and.b32 ${quarter}, {word}, {mask};")
    lines += [f"fma.rn.bf16x2 ${q}, ${q}, $5, zero;" for q in range(4)]
    return "{\n" + "\n".join(lines) + "\n}"


PTX = tl.constexpr(_ptx())
REGISTERS = tl.constexpr("=&r,=&r,=&r,=&r,r,r,r")


@triton.jit
def left(word, rotation: tl.constexpr):
    """A uint32 rotated left."""
    return (word << rotation) | (word >> (32 - rotation))


@triton.jit
def number(code):
    """A code at PLACE of 16 bits -> its value in float32."""
    magnitude = (code >> 6) & 7
    bits = ((magnitude >> 1) + 126) << 23 | (magnitude & 1) << 22
    small = magnitude.to(tl.float32) * 0.5
    value = tl.where(magnitude < 2, small, bits.to(tl.float32, bitcast=True))
    return tl.where((code >> 15) & 1 == 0, value, -value)


@triton.jit
def numbers(word, power, BK: tl.constexpr):
    """uint32 words, each repeated for its two pieces, and scales -> float32 weights per quarter."""
    half = (tl.arange(0, BK // 4) % 2 * 16)[None, :].to(tl.uint32)
    bits = tl.where(power == 0, 1 << 22, power << 23)
    scale = bits.to(tl.float32, bitcast=True)
    a = number((word & (_PLACE * 0x10001)) >> half) * scale
    b = number((left(word, _ROTATION_1) & (_PLACE * 0x10001)) >> half) * scale
    c = number((left(word, _ROTATION_2) & (_PLACE * 0x10001)) >> half) * scale
    d = left(word, _ROTATION_3) & (_FIRST * 0x10001) | left(word, _ROTATION_4) & (_SECOND * 0x10001)
    return a, b, c, number(d >> half) * scale


@triton.jit
def powers(pairs, BM: tl.constexpr, BK: tl.constexpr):
    """Scales, int16 of two rows' bytes [BM / 2, groups] -> int32 [BM, pieces], 8 pieces a group.

    The two bytes are of rows r and r + 8. A lane needs both, so it reads shared memory once.
    """
    two = pairs.to(tl.uint16, bitcast=True).to(tl.uint32)
    one = tl.reshape(tl.join(two & 255, two >> 8), [BM // 16, 8, BK // 32, 2])
    one = tl.reshape(tl.permute(one, [0, 3, 1, 2]), [BM, BK // 32, 1])
    return tl.reshape(tl.broadcast_to(one, [BM, BK // 32, 8]), [BM, BK // 4]).to(tl.int32)


@triton.jit
def load(
    x,
    blocks,
    scales,
    first,
    used,
    OUTPUTS: tl.constexpr,
    HERE: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Load the pieces, scales and columns of x of the next BK inputs, of which HERE exist."""
    piece = tl.arange(0, BK // 4)
    group = tl.arange(0, BK // 32)
    row = first + tl.arange(0, BM)
    pair = first // 2 + tl.arange(0, BM // 2)
    at = row[:, None] * 8 + (piece // 8 * (OUTPUTS * 8) + piece % 8)[None, :]
    at_scale = pair[:, None] + (group * (OUTPUTS // 2))[None, :]
    inside, within = row[:, None] >= 0, pair[:, None] >= 0
    if OUTPUTS % BM != 0:
        inside, within = row[:, None] < OUTPUTS, pair[:, None] < OUTPUTS // 2
    if HERE < BK:
        inside = inside & (piece // 8 < HERE // 32)[None, :]
        within = within & (group < HERE // 32)[None, :]
    if INTERPRETED or x.dtype.element_ty == tl.float32:
        blocks, at = blocks.to(tl.pointer_type(tl.uint32), bitcast=True), at // 2
    w = tl.load(blocks + at, mask=inside, other=0)
    scale = tl.load(scales + at_scale, mask=within, other=0)
    return w, scale, columns(x, used, HERE, BK, WHOLE)


@triton.jit
def columns(x, used, HERE: tl.constexpr, BK: tl.constexpr, WHOLE: tl.constexpr):
    """Load the next BK inputs of x's rows: [BK / 4, BN] of each quarter, or if WHOLE [BK, BN]."""
    if not WHOLE:
        k = tl.arange(0, BK // 4)
        seen = used[None, :]
        if HERE < BK:
            seen = seen & (k // 8 < HERE // 32)[:, None]
        x += (k // 8 * 32 + k % 8)[:, None]
        a, b = tl.load(x, mask=seen, other=0.0), tl.load(x + 8, mask=seen, other=0.0)
        c, d = tl.load(x + 16, mask=seen, other=0.0), tl.load(x + 24, mask=seen, other=0.0)
        return a, b, c, d
    else:
        k = tl.arange(0, BK)
        group = tl.max_constancy(k % (BK // 4) // 8, 8)
        seen = used[None, :]
        if HERE < BK:
            seen = seen & (group < HERE // 32)[:, None]
        k = tl.max_contiguous(tl.multiple_of(group * 32 + k // (BK // 4) * 8 + k % 8, 8), 8)
        x = tl.load(x + k[:, None], mask=seen, other=0.0)
        return x, x, x, x


@triton.jit
def multiply(w, scale, x, acc, BM: tl.constexpr, BK: tl.constexpr, WHOLE: tl.constexpr):
    """acc + W x^T for what `load` returned."""
    power = powers(scale, BM, BK)
    if w.dtype == tl.uint32:
        a, b, c, d = numbers(w, power, BK)
    else:
        a, b, c, d = tl.inline_asm_elementwise(
            PTX,
            REGISTERS,
            [w, power * 0x00800080 + _OFFSET],
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=2,
        )
    if not WHOLE:
        acc = dot(a, x[0], acc)
        acc = dot(b, x[1], acc)
        acc = dot(c, x[2], acc)
        return dot(d, x[3], acc)
    else:
        quarters = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [BM, BK // 4, 4])
        return dot(tl.reshape(tl.permute(quarters, [0, 2, 1]), [BM, BK]), x[0], acc)


@triton.jit
def dot(w, x, acc):
    return tl.dot(w, x.to(w.dtype), acc, input_precision="ieee")


@triton.jit
def product(
    x,
    rows,
    used,
    blocks,
    scales,
    slot,
    first,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """W x^T for outputs first .. first + BM of one slot and BN rows of x -> float32 [BM, BN].

    blocks and scales *int16, as `mxfp4.pack` arranges them: 8 pieces of 16 bits per group of 32
    inputs, and two rows' scales. The remainder of INPUTS by BK is loaded first and multiplied last.
    """
    slot = slot.to(tl.int64)
    blocks += slot * (OUTPUTS * INPUTS // 4)
    scales += slot * (OUTPUTS * INPUTS // 64)
    x += (rows * INPUTS)[None, :]
    acc = tl.zeros([BM, BN], tl.float32)
    END: tl.constexpr = INPUTS // BK * BK
    REST: tl.constexpr = INPUTS - END
    LAST: tl.constexpr = max(64, triton.next_power_of_2(REST))
    if REST:
        w, scale, some = load(
            x + END,
            blocks + END // 32 * OUTPUTS * 8,
            scales + END // 32 * OUTPUTS // 2,
            first,
            used,
            OUTPUTS,
            REST,
            BM,
            LAST,
            WHOLE,
        )
    for _ in tl.range(0, END, BK, num_stages=STAGES):
        wi, si, xi = load(x, blocks, scales, first, used, OUTPUTS, BK, BM, BK, WHOLE)
        acc = multiply(wi, si, xi, acc, BM, BK, WHOLE)
        blocks += BK // 32 * OUTPUTS * 8
        scales += BK // 32 * OUTPUTS // 2
        x += BK
    if REST:
        acc = multiply(w, scale, some, acc, BM, LAST, WHOLE)
    if INTERPRETED or x.dtype.element_ty == tl.float32:
        return acc
    return acc * _UNDO
