"""The functional Core: single commands, and programs that are broken on purpose."""

import numpy as np
import pytest

from systolora.config import AcceleratorConfig, preset
from systolora.contract import STICKY, TOKENS_MAX, Dataflow, Edge, Mode, Opcode, Source
from systolora_sim.machine import DeadlockError, Machine, MachineError, RaceError
from systolora_sim.program import CommandError, run_sync

TINY = preset("tiny")
INT8 = AcceleratorConfig(rows=8, cols=8, segments=2, int16=False, acc_depth=64)


def tile(machine: Machine, **fields: int) -> None:
    """A WS tile of ones with a load, or an OS tile of ones."""
    fields = {"length": 1, "load": 1} | fields
    beats = fields["length"] if fields.get("dataflow") == Dataflow.OS else 4 * fields["load"]
    machine.tile(np.ones((fields["length"], 4), np.uint8), np.ones((beats, 4), np.uint8), **fields)


def rows(machine: Machine, **fields: int) -> None:
    machine.post(None, **({"opcode": Opcode.ROWS, "rows": 1, "cols": 4, "emit": 1} | fields))


def fails(machine: Machine, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run_sync(machine.flush())


@pytest.mark.parametrize("order", ["tile_first", "post_first"])
def test_races_are_found_in_any_order(order):
    machine = Machine(TINY, order)
    tile(machine, signal=1)
    tile(machine, acc_base=1)
    rows(machine, wait=1, src_base=1)  # the token came from the tile before
    fails(machine, RaceError if order == "tile_first" else MachineError, "row 1")

    machine = Machine(TINY, order)
    tile(machine, signal=1)
    tile(machine)  # does not wait for the post command that reads the row
    rows(machine, wait=1)
    fails(machine, RaceError, "accumulator row 0")

    machine = Machine(TINY, order)
    tile(machine, signal=1)
    tile(machine, wait=1)
    rows(machine, wait=1, signal=1)
    assert run_sync(machine.flush()).acc_out.tolist() == [[4] * 4]


def test_a_flush_orders_everything():
    machine = Machine(TINY)
    tile(machine)
    run_sync(machine.flush())
    rows(machine)
    assert run_sync(machine.flush()).acc_out.tolist() == [[4] * 4]


def test_deadlock():
    machine = Machine(TINY)
    tile(machine, wait=1)
    rows(machine, wait=1)
    fails(machine, DeadlockError, "1 tile commands .* 1 post commands")


def test_too_many_tokens():
    machine = Machine(TINY)
    for _ in range(TOKENS_MAX + 1):
        tile(machine, signal=1)
    fails(machine, MachineError, f"{TOKENS_MAX + 1} tokens of the tile queue .* at most")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"acc_base": 31, "length": 2}, "tile rows 31..32: must lie in one bank of 32 rows"),
        ({"acc_base": 127, "length": 2}, "tile rows 127..128: must lie in one bank"),
        ({"accumulate": 1}, "adds to accumulator row 0, never written"),
        ({"shift": 3}, "shift = 3: out of range"),
        ({"load": 0}, "WS without load, but the command before left no tile"),
        ({"dataflow": Dataflow.OS}, "out_rows = 0: must be 1 to 4"),
        ({"dataflow": Dataflow.OS, "out_rows": 5}, "out_rows = 5: must be 1 to 4"),
        (
            {"dataflow": Dataflow.OS, "out_rows": 1, "length": 32769, "act_low": 1, "wgt_low": 1},
            "OS length = 32769: at most 32768",
        ),
        (
            {"dataflow": Dataflow.OS, "out_rows": 1, "length": 131072, "act_low": 1},
            "OS length = 131072: at most 131071",
        ),
    ],
)
def test_broken_tile_commands(fields, message):
    machine = Machine(TINY)
    tile(machine, **fields)
    fails(machine, MachineError, message)


def test_a_tile_does_not_survive_an_output_stationary_command():
    machine = Machine(TINY)
    tile(machine)
    tile(machine, dataflow=Dataflow.OS, out_rows=1)
    tile(machine, load=0)
    fails(machine, MachineError, "the command before left no tile")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"src_base": 5}, "reads accumulator row 5, never written"),
        ({"cols": 0}, "ROWS of 1 rows, 0 columns: out of range"),
        ({"cols": 5}, "ROWS of 1 rows, 5 columns: out of range"),
        ({"rows": 2, "src_base": 31}, "src rows 31..32: must lie in one bank"),
        ({"add": 1, "rows": 2, "dst_base": 95}, "dst rows 95..96: must lie in one bank"),
        ({"write": 1, "rows": 2, "dst_base": 1}, "rows at 0 and 1 overlap"),
        ({"add": 1, "rows": 2, "dst_base": 1}, "rows at 0 and 1 overlap"),
        (
            {"mode": Mode.INT8},
            "status, quantize are of RAW and ACC only",
        ),
    ],
)
def test_broken_post_commands(fields, message):
    machine = Machine(TINY)
    tile(machine, length=2)
    run_sync(machine.flush())
    rows(machine, **fields)
    fails(machine, MachineError, message)


def test_what_an_int8_array_refuses():
    machine = Machine(INT8)
    machine.tile(np.ones((1, 8), np.uint8), np.ones((4, 16), np.uint8), length=1, load=1, act_low=1)
    fails(machine, MachineError, "no byte planes")
    machine = Machine(INT8)
    machine.post(
        np.zeros((1, 8), np.int64),
        opcode=Opcode.ROWS,
        source=Source.STREAM,
        mode=Mode.INT16,
        rows=1,
        cols=8,
    )
    fails(machine, MachineError, "8-bit results")


def test_beats_must_fit_their_command():
    machine = Machine(TINY)
    act = np.zeros((2, 4), np.uint8)
    with pytest.raises(CommandError, match=r"act beats are uint8 \(2, 4\): must be uint8 \(3, 4\)"):
        machine.tile(act, None, length=3)
    with pytest.raises(CommandError, match=r"wgt beats .*: must be uint8 \(4, 4\)"):
        machine.tile(act, None, length=2, load=1)
    with pytest.raises(CommandError, match=r"acc_in beats .*: must be int64 \(1, 4\)"):
        machine.post(opcode=Opcode.BIAS)
    with pytest.raises(CommandError, match="unknown field 'lenght'"):
        machine.tile(act, None, lenght=2, length=2)
    with pytest.raises(CommandError, match="cols = 1024: must fit 10 bits"):
        machine.post(opcode=Opcode.ROWS, rows=1, cols=1024)


def test_edges_and_segments():
    """The tile that arrives line by line is the tile that multiplies, from either edge."""
    rng = np.random.default_rng(6)
    config = AcceleratorConfig(rows=8, cols=4, segments=2, acc_depth=32)
    wanted = rng.integers(-128, 128, (8, 4))
    act = rng.integers(-128, 128, (3, 8))
    for edge in Edge:
        lines = wanted if edge == Edge.TOP else wanted.T
        each = lines.shape[0] // 2
        beats = np.zeros((each, 2, 8), np.uint8)
        for beat in range(each):
            for segment in range(2):
                line = lines[segment * each + each - 1 - beat]
                beats[beat, segment, : line.size] = line.astype(np.int8).view(np.uint8)
        machine = Machine(config)
        machine.tile(
            act.astype(np.int8).view(np.uint8), beats.reshape(each, 16), length=3, load=1, edge=edge
        )
        run_sync(machine.flush())
        rows(machine, rows=3)
        assert (run_sync(machine.flush()).acc_out == act @ wanted).all()


def test_padding_columns_leave_and_are_written_as_zero():
    machine = Machine(TINY)
    tile(machine)
    run_sync(machine.flush())
    rows(machine, cols=2, write=1, dst_base=7)
    rows(machine, src_base=7)
    assert run_sync(machine.flush()).acc_out.tolist() == [[4, 4, 0, 0]] * 2


def test_status_bits_are_in_the_order_of_the_contract():
    machine = Machine(TINY)
    for dst, e in ((0, 511), (1, 511)):
        machine.post(opcode=Opcode.SCALE_SET, dst=dst, imm=1 << 15 | e << 16)
    machine.post(opcode=Opcode.SCALE_MUL, dst=2, src_a=0, src_b=1)
    assert run_sync(machine.flush()).sticky == 1 << STICKY.index("scale_range")


def test_scales_and_maxima_through_memory():
    """SCALE_LOAD takes lanes 0 and 1, a mantissa below 2^15 is zero; AMAX_LOAD is unsigned."""
    machine = Machine(INT8)
    beat = np.full((1, INT8.cols), -1, np.int64)
    loads = [(0x8001, -512), (0xFFFF, 511), (0x7FFF, 3), (-1, -1), (0x18000, 1 << 10)]
    for dst, (m, e) in enumerate(loads):
        beat[0, :2] = m, e
        machine.post(beat.copy(), opcode=Opcode.SCALE_LOAD, dst=dst)
    machine.post(opcode=Opcode.SCALE_SET, dst=5, imm=0x7FFF | 7 << 16)
    for src in range(6):
        machine.post(opcode=Opcode.SCALE_READ, src_a=src)
    beat[0, 0] = -1
    machine.post(beat, opcode=Opcode.AMAX_LOAD, dst=7)
    machine.post(opcode=Opcode.AMAX_READ, src_a=7)
    info = run_sync(machine.flush()).info
    assert [(word["m"], word["e"]) for word in info[:6]] == [
        (0x8001, -512), (0xFFFF, 511), (0, 0), (0xFFFF, -1), (0x8000, 0), (0, 0)
    ]  # fmt: skip
    assert info[6]["amax"] == (1 << 32) - 1


def test_select_falls_back_and_delayed_rests():
    machine = Machine(TINY)
    values = np.full((1, 4), 1000, np.int64)
    quantize = {"opcode": Opcode.ROWS, "source": Source.STREAM, "rows": 1, "cols": 4}
    quantize |= {"mode": Mode.INT8, "delayed": 1}
    machine.post(opcode=Opcode.SCALE_SET, dst=0, imm=1 << 15)
    machine.post(opcode=Opcode.AMAX_SET, dst=1, imm=0)
    machine.post(opcode=Opcode.AMAX_SET, dst=2, imm=77)
    for first, second in ((1, 2), (2, 1)):
        machine.post(opcode=Opcode.AMAX_SELECT, dst=3, src_a=first, src_b=second)
        machine.post(values, **quantize)
        machine.post(opcode=Opcode.AMAX_READ, src_a=3)
        machine.post(opcode=Opcode.STICKY_READ)
    info = [word["amax"] for word in run_sync(machine.flush()).info]
    assert info == [77, 0, 77, 1 << STICKY.index("clip_delayed")]


def test_sticky_bits_through_memory():
    machine = Machine(TINY)
    beat = np.array([[0b10101 | 1 << 20, 0, 0, 0]], np.int64)
    machine.post(beat, opcode=Opcode.STICKY_LOAD)
    machine.post(opcode=Opcode.STICKY_READ)
    outputs = run_sync(machine.flush())
    assert outputs.info[0]["amax"] == outputs.sticky == 0b10101


def test_without_strict_undefined_programs_run():
    machine = Machine(TINY, strict=False)
    tile(machine, load=0, accumulate=1)
    rows(machine, src_base=9)
    tile(machine)
    assert run_sync(machine.flush()).acc_out.shape == (1, 4)
