"""The functional machine: layers through the compiler equal the golden model, to the bit.

Every layer runs in both extreme orders of the two queues, and the machine itself proves from the
tokens that the order between them does not matter. Further tests break programs on purpose.
"""

import numpy as np
import pytest

from systolora.config import AcceleratorConfig, preset
from systolora.contract import STICKY, TOKENS_MAX, Dataflow, Edge, Mode, Opcode, Source
from systolora_sim.bench.cases import random_layer
from systolora_sim.compiler import (
    CompileError,
    act_beats,
    check_layer,
    compute_layer,
    product_records,
)
from systolora_sim.demo import differences
from systolora_sim.golden import run_layer
from systolora_sim.layer import Layer, LayerResult
from systolora_sim.machine import DeadlockError, Machine, MachineError, RaceError
from systolora_sim.numerics import Scale
from systolora_sim.program import CommandError, run_sync

CONFIGS = {
    "tiny": preset("tiny"),
    "ecp5": preset("ecp5"),
    "8x16s4": AcceleratorConfig(rows=8, cols=16, segments=4, acc_depth=64),
    "16x8s8": AcceleratorConfig(rows=16, cols=8, segments=8, acc_depth=128),
    "4x8s1-shallow": AcceleratorConfig(rows=4, cols=8, segments=1, acc_depth=8),
    "8x4s4-shallow": AcceleratorConfig(rows=8, cols=4, segments=4, acc_depth=16),
}
INT8 = AcceleratorConfig(rows=8, cols=8, segments=2, int16=False, acc_depth=64)

OUTPUTS = ("H", "Y", "dH", "dX")
WIDE: dict[str, int] = dict.fromkeys(("x", "weight", "lora_A", "lora_B", "dy", *OUTPUTS), 16)

#: N, d, k, r
SHAPES = [
    (1, 1, 1, 1),
    (1, 9, 5, 2),
    (3, 1, 1, 7),
    (5, 7, 9, 3),
    (16, 16, 16, 8),
    (13, 20, 31, 4),
    (41, 17, 34, 9),
    (7, 70, 3, 17),
]

MODES = {
    "int8": {},
    "bias": {"bias": True},
    "int16": {"bits": WIDE},
    "int16-extremes": {"bits": WIDE, "extremes": True},
    "int8-extremes": {"extremes": True, "bias": True},
    "x-int16": {"bits": dict.fromkeys(("x", "lora_A", "lora_B", "H", "Y"), 16)},
    "dy-int16": {"bits": dict.fromkeys(("dy", "dH", "dX"), 16)},
    "outputs-int16": {"bits": dict.fromkeys(OUTPUTS, 16)},
    "stochastic": {"stochastic": frozenset(OUTPUTS), "seed": -5, "step": 7, "index": 3},
    "delayed": {
        "delayed": frozenset(OUTPUTS),
        "amax": {"H": 900, "Y": 4000, "dH": 2500, "dX": 70000},
    },
    "delayed-first": {"delayed": frozenset(OUTPUTS), "amax": {"Y": 0, "dX": 50}},
    "delayed-stochastic": {
        "delayed": frozenset({"H", "dX"}),
        "stochastic": frozenset({"H", "Y", "dX"}),
        "amax": {"H": 1, "dX": 1 << 40},
        "bias": True,
    },
    "no-dx": {"want_dx": False},
}


def both_orders(layer: Layer, config: AcceleratorConfig) -> LayerResult:
    """The machine's result, the same in both orders."""
    first, records = run_sync(compute_layer(Machine(config, "tile_first"), layer))
    second, _ = run_sync(compute_layer(Machine(config, "post_first"), layer))
    assert differences(first, second) == {}
    assert records == product_records(layer)  # the machine has no cycles to add
    return first


def check(layer: Layer, config: AcceleratorConfig) -> LayerResult:
    golden = run_layer(layer)
    assert differences(both_orders(layer, config), golden) == {}
    return golden


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CONFIGS)
def test_layers(name, mode):
    for number, shape in enumerate(SHAPES):
        fields = {"want_dx": True} | MODES[mode]
        layer = random_layer(100 + number, *shape, **fields)
        print(f"seed {100 + number}, shape {shape}, configuration {CONFIGS[name].digest}")
        check(layer, CONFIGS[name])


@pytest.mark.parametrize("seed", range(40))
def test_random_layers(seed):
    """Shapes, widths, modes and arrays at random, accumulators from scarce to plenty."""
    rng = np.random.default_rng(seed)
    rows, cols = (int(rng.choice([4, 8, 16])) for _ in range(2))
    config = AcceleratorConfig(
        rows=rows,
        cols=cols,
        segments=int(rng.choice([s for s in (1, 2, 4, 8) if s <= min(rows, cols)])),
        acc_depth=2 * rows << int(rng.integers(0, 5)),
    )
    n, d, k = (int(rng.integers(1, limit)) for limit in (60, 80, 80))
    rank = int(rng.integers(1, 20))
    some = {name for name in OUTPUTS if rng.random() < 0.4}
    delayed = frozenset(name for name in OUTPUTS if rng.random() < 0.3)
    print(f"seed {seed}, shape {(n, d, k)}, rank {rank}, {config}")
    layer = random_layer(
        seed,
        n,
        d,
        k,
        rank,
        bits={name: int(rng.choice([8, 16])) for name in WIDE},
        bias=bool(rng.random() < 0.5),
        want_dx=True,
        stochastic=frozenset(some),
        delayed=delayed,
        amax={name: int(rng.integers(0, 1 << 20)) for name in delayed},
        seed=int(rng.integers(-(1 << 31), 1 << 31)),
    )
    check(layer, config)


def test_int8_array():
    for number, shape in enumerate(SHAPES):
        check(random_layer(number, *shape, want_dx=True, bias=True), INT8)


def test_every_status_bit():
    """A layer that saturates everything: the bits are the golden model's."""
    huge = random_layer(1, 9, 10, 11, 3, want_dx=True, bias=True)
    huge.gain = Scale(60000, 60)
    result = check(huge, CONFIGS["tiny"])
    assert "acc_sat" in result.sticky

    far = random_layer(2, 9, 10, 11, 3, want_dx=True)
    far.scales["dy"], far.gain = Scale(40000, 500), Scale(40000, 100)
    assert "scale_range" in check(far, CONFIGS["tiny"]).sticky

    late = random_layer(
        3, 9, 10, 11, 3, want_dx=True, delayed=frozenset({"Y"}), amax={"Y": 100}
    )  # fmt: skip
    assert check(late, CONFIGS["tiny"]).sticky == {"clip_delayed"}


def test_zero_tensors():
    """lora_B = 0 as at the start of a training: dH is all zero, and its scale is zero."""
    layer = random_layer(4, 6, 7, 8, 3, want_dx=True)
    layer.lora_B = np.zeros_like(layer.lora_B)
    assert check(layer, CONFIGS["tiny"]).scales["dH"].is_zero


def test_deep_low_planes():
    """A low-rank term deeper than 32768: passes of two low planes are cut there."""
    layer = random_layer(5, 3, 2, 3, 33000, bits=WIDE, extremes=True, want_dx=True)
    check(layer, AcceleratorConfig(rows=4, cols=4, segments=1, acc_depth=4096))


def test_a_layer_that_the_array_cannot_do():
    with pytest.raises(CompileError, match="x is int16: the configuration was generated without"):
        check_layer(random_layer(1, 2, 2, 2, 1, bits={"x": 16}), INT8)
    with pytest.raises(CompileError, match=r"bits\.dH = 16: the configuration was generated"):
        run_sync(compute_layer(Machine(INT8), random_layer(1, 2, 2, 2, 1, bits={"dH": 16})))


def test_product_records():
    """MACs count true operands: M * K * N times passes, and the low-rank term's."""
    layer = random_layer(
        1, 5, 7, 9, 3, want_dx=True, bits={"weight": 16, "H": 16, "lora_B": 16}
    )  # fmt: skip
    records = {record.name: record for record in product_records(layer)}
    assert list(records) == ["H", "Y", "dH", "dB", "dA", "dX"]
    assert (records["H"].m, records["H"].k, records["H"].n, records["H"].macs) == (3, 7, 5, 105)
    assert records["Y"].macs == 5 * 7 * 9 * 2 + 5 * 3 * 9 * 4
    assert (records["dX"].passes, records["dX"].macs) == (2, 5 * 9 * 7 * 2 + 5 * 3 * 7)
    assert records["H"].share(16) is None
    records["H"].cycles = 21
    assert records["H"].share(16) == round(105 / 16 / 21, 4)


@pytest.mark.parametrize("name", ["tiny", "16x8s8"])
def test_act_beats(name):
    """What progress is measured with is what the commands take (where no bank cuts the rows)."""

    class Counter(Machine):
        beats = 0

        async def flush(self):
            self.beats += sum(len(tile.act) for tile in self.pending.tiles)
            return await super().flush()

    for mode in ("int8", "int16", "x-int16"):
        layer = random_layer(1, 13, 20, 31, 4, **({"want_dx": True} | MODES[mode]))
        machine = Counter(CONFIGS[name])
        run_sync(compute_layer(machine, layer))
        assert machine.beats == act_beats(layer, CONFIGS[name])


# Single commands --------------------------------------------------------------------------------

TINY = CONFIGS["tiny"]


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
        ({"acc_base": 63, "length": 2}, "tile rows 63..64: must lie in one bank of 64 rows"),
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
        ({"rows": 2, "src_base": 63}, "src rows 63..64: must lie in one bank"),
        ({"add": 1, "rows": 2, "dst_base": 63}, "dst rows 63..64: must lie in one bank"),
        ({"write": 1, "rows": 2, "dst_base": 1}, "rows at 0 and 1 overlap"),
        (
            {"mode": Mode.INT8},
            "add, bias, write, emit, negate, limit, status are of RAW and ACC only",
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
    config = AcceleratorConfig(rows=8, cols=4, segments=2, acc_depth=16)
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
