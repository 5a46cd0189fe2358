"""nvdisasm's text as instructions and loops."""

from m40llm.sm52.pipes import MAXWELL, Rounds, slots
from m40llm.sm52.sass import Instruction, parse

# As nvdisasm of CUDA 12.4 writes code for sm_52, shortened: two loops in a third, a pair that is
# issued at once, the word that steers three instructions, and what pads the end.
LISTING = """
        .headerflags    @"EF_CUDA_SM52 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM52)"
.text.kernel:
        /*0008*/                   MOV R1, c[0x0][0x20] ;
                                                            /* 0x083fc400e3e007f6 */
        /*0010*/                   S2R R0, SR_TID.X ;
.L_x_0:
        /*0018*/                   MOV R3, RZ ;
.L_x_1:
        /*0028*/         {         FFMA R4, R5, R6, R4 ;
        /*0030*/                   LDG.E.CI.128 R8, [R2]         }
        /*0038*/                   FFMA R4, R8.reuse, R6, R4 ;
        /*0048*/                   ISETP.GE.AND P0, PT, R3, c[0x0][0x188], PT ;
        /*0050*/              @!P0 BRA `(.L_x_1) ;
.L_x_2:
        /*0058*/                   LDG.E.U16 R9, [R2] ;
        /*0068*/                   FFMA R4, R9, R6, R4 ;
        /*0070*/               @P1 BRA `(.L_x_2) ;
        /*0078*/               @P2 BRA `(.L_x_0) ;
        /*0088*/                   STG.E [R2], R4 ;
        /*0090*/                   EXIT ;
.L_x_3:
        /*0098*/                   BRA `(.L_x_3) ;
        /*00a8*/                   NOP ;
.L_x_4:
"""


def test_instructions() -> None:
    code = parse(LISTING).instructions
    assert [one.name for one in code[2:7]] == ["MOV", "FFMA", "LDG", "FFMA", "ISETP"]
    assert code[4] == Instruction(0x30, "LDG.E.CI.128", "R8, [R2]")
    assert code[7] == Instruction(0x50, "BRA", "`(.L_x_1)", "!P0", "L_x_1")
    assert code[-1].name == "EXIT"
    assert len(code) == 14


def test_bytes_of_a_load() -> None:
    widths = {"LDG.E": 4, "LDG.E.128": 16, "LDS.U.64": 8, "LDG.E.U16": 2, "LDG.E.S8.CONSTANT": 1}
    assert {opcode: Instruction(0, opcode).n_bytes for opcode in widths} == widths


def test_the_hot_loop_is_an_inner_one() -> None:
    """The outer loop has more FFMAs, of which none would be counted twice."""
    listing = parse(LISTING)
    assert [len(loop.body) for loop in listing.loops] == [10, 5, 3]
    loop = listing.hot_loop
    assert loop is not None
    assert (loop.begin, loop.end) == (0x28, 0x50)
    assert loop.mix == {"FFMA": 2, "LDG": 1, "ISETP": 1, "BRA": 1}
    assert loop.ffma_share == 0.4
    assert loop.loaded_bytes == 16
    in_no_inner_loop = [one.name for one in listing.straight]
    assert in_no_inner_loop == ["MOV", "S2R", "MOV", "BRA", "STG", "EXIT"]


def test_without_ffma_the_loop_that_loads_most() -> None:
    text = LISTING.replace("FFMA", "FADD").replace("LDG.E.U16", "LDG.E.128")
    loop = parse(text).hot_loop
    assert loop is not None
    assert loop.begin == 0x58, "as many bytes in fewer instructions"


def test_code_without_a_loop() -> None:
    straight = "\n".join(line for line in LISTING.splitlines() if "`(.L_x_" not in line)
    assert parse(straight).hot_loop is None
    assert parse("").instructions == ()


def test_slots() -> None:
    """Eight FFMAs keep the lanes busy for eight clocks, beside them two loads theirs."""
    ffma, load, shift = (Instruction(0, name) for name in ("FFMA", "LDS.128", "SHL"))
    assert slots([ffma] * 8 + [load] * 2, MAXWELL) == (8, 32)
    assert slots([ffma] * 8 + [load] * 3, MAXWELL) == (12, 48)
    assert slots([shift] * 4 + [ffma] * 2, MAXWELL) == (8, 8)
    assert slots([ffma, shift], MAXWELL) == (2, 2)
    assert slots([ffma, Instruction(0, "BRA")], MAXWELL) == (1, 2)
    assert slots([], MAXWELL) == (0, 0)


def test_slots_of_what_was_counted() -> None:
    """Three rounds of shared memory and two of the device's, at best and at worst, four slots
    each; what is not counted is as before."""
    counted = Rounds(device=2.0, shared=3.0)
    shared, device, local = (Instruction(0, name) for name in ("LDS.128", "STG.E.64", "LDL"))
    assert slots([shared], MAXWELL, counted) == (12, 12)
    assert slots([device], MAXWELL, counted) == (8, 8)
    assert slots([local], MAXWELL, counted) == (4, 4)
    assert slots([shared, device, local], MAXWELL, counted) == (24, 24)
