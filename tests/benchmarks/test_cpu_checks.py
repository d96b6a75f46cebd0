"""The mistakes that are put into the kernels: each is one, in code that is compiled."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.cpu.checks import headers_of, mistakes
from tests.root import ROOT


def test_comments_directives_and_hints_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "kernel.h"
    path.write_text(
        "// 1 < 2\nconstexpr int N = 3;\nint f(int a) {\n"
        "    prefetch(a + 4);\n    return a < N;  // 5 * a\n}\n"
    )
    assert [str(one) for one in mistakes(path)] == ["kernel.h:5:  <  ->  <= "]


@pytest.mark.parametrize("variant", ["amx", "vnni", "avx512", "avx2", "neon", "portable"])
def test_every_variant_has_its_own_headers(variant: str) -> None:
    names = [path.name for path in headers_of(variant, ROOT / "native")]
    assert f"{variant}.h" in names
    assert ("tiles.h" in names) == (variant == "amx")
    assert ("planes.h" in names) == (variant in ("avx2", "vnni"))
    assert {"attention.h", "moe.h", "linear.h", "formats.h"} < set(names)
