"""The instructions of a loop, from a disassembly."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from benchmarks.cuda.sass import loops

pytestmark = pytest.mark.torch

TEXT = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDSM.16.M88.4 R4, [R8] ;
.L_x_0:
        /*0020*/              @!P0 LOP3.LUT R4, R4, 0x81c081c0, RZ, 0xc0, !PT ;
        /*0030*/              @UP1 UIADD3 UR4, UR4, 0x1, URZ ;
        /*0040*/               @P1 BRA `(.L_x_0) ;
        /*0050*/               @P2 BRA `(.L_x_2) ;
        /*0060*/                   BRA `(.L_x_1) ;
.L_x_2:
        /*0070*/                   EXIT ;
"""


def test_loops_are_what_is_jumped_back_over() -> None:
    inner = ["LOP3", "UIADD3", "BRA"]
    assert list(loops(TEXT)) == [inner, ["LDSM", *inner, "BRA", "BRA"]]
