"""Text of others on a terminal: what steers it or hides in it is replaced."""

from __future__ import annotations

import sys
import unicodedata

from gptoss_mlx.cli.terminal import harmless


def test_harmless_covers_every_format_character_that_is_not_part_of_a_word() -> None:
    visible = {0x600, 0x601, 0x602, 0x603, 0x604, 0x605, 0x6DD, 0x70F, 0x890, 0x891, 0x8E2}
    visible |= {0x110BD, 0x110CD, *range(0x13430, 0x13440)}  # Arabic and Egyptian signs
    joining = {0xAD, 0x200C, 0x200D}
    for code in range(sys.maxunicode + 1):
        kind = unicodedata.category(chr(code))
        steers = kind in ("Cc", "Cf", "Cs", "Zl", "Zp") and chr(code) not in "\t\n"
        if steers and code not in visible | joining:
            assert harmless(chr(code)) == "\ufffd", hex(code)
        elif kind[0] in "LNPS" or code in joining:
            assert harmless(chr(code)) == chr(code), hex(code)
