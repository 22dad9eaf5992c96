"""Counting instructions in what nvdisasm prints."""

from __future__ import annotations

from benchmarks.kernels.sass import read_listing

LISTING = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;
.L_x_0:
        /*0020*/                   DFMA R2, R2, R4, R6 ;
        /*0030*/                   F2F.F32.F64 R2, R2 ;
        /*0040*/               @P1 BRA `(.L_x_0) ;
        /*0050*/                   FFMA R2, R2, R4, R6 ;
        /*0060*/              @!UP2 UIADD3 UR4, UR4, 0x1, URZ ;
        /*0070*/               @P2 BRA `(.L_x_1) ;
        /*0080*/               @P3 BRA `(.L_x_3) ;
        /*0090*/                   STG.E [R2.64], R2 ;
.L_x_3:
        /*00a0*/                   EXIT ;
.L_x_2:
        /*00b0*/                   BRA `(.L_x_2);
        /*00c0*/                   NOP;
"""


def test_loops_are_counted_without_the_loops_inside_them() -> None:
    listing = read_listing(LISTING)
    assert listing.count == 11
    assert [loop.count for loop in listing.loops] == [4, 3]
    assert listing.loops[0].opcodes == {"LDG": 1, "FFMA": 1, "UIADD3": 1, "BRA": 1}
    assert listing.loops[1].opcodes == {"DFMA": 1, "F2F": 1, "BRA": 1}
    assert listing.straight == 4


def test_arithmetic_and_conversions_of_fp64_are_counted() -> None:
    assert read_listing(LISTING).fp64 == 2
    assert read_listing(LISTING.replace("DFMA", "FFMA").replace("F32.F64", "F32.F16")).fp64 == 0


def test_nothing_is_no_instruction() -> None:
    listing = read_listing("")
    assert (listing.count, listing.straight, listing.loops) == (0, 0, ())
