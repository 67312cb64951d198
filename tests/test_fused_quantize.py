"""Row operations that quantize the value they join: on the functional models, no simulator."""

import numpy as np
import pytest

from systolora.config import AcceleratorConfig, preset
from systolora.contract import (
    POST_DESCRIPTOR,
    Fault,
    Kind,
    Limit,
    Mode,
    Opcode,
    Quantize,
    Source,
    Status,
    register_constants,
)
from systolora_sim.bench.sample import ProgramBuilder
from systolora_sim.descriptor import assemble, disassemble, encode
from systolora_sim.machine import Machine, MachineError
from systolora_sim.memory_map import Symbol
from systolora_sim.numerics import Scale
from systolora_sim.post_builder import PostBuilder
from systolora_sim.program import Outputs, run_sync, scale_imm
from systolora_sim.quantization import Quantization, quantizing_value
from systolora_sim.system_checks import Checker, Window
from systolora_sim.work import Post, Rows
from test_machine import fails
from test_system_machine import BASE, DATA, JOIN, OUT, QUANT, ROWS, SIZE, Bench, undefined

TINY = preset("tiny").with_fields(fused_quantize=True)
INT8 = AcceleratorConfig(
    rows=8, cols=8, segments=2, int16=False, acc_depth=64, fused_quantize=True
)  # fmt: skip
CONFIGS = {"int16": TINY, "int8": INT8}


def filled(config: AcceleratorConfig, seed: int) -> Machine:
    """A machine with something in all accumulators, the bias row and the registers."""
    rng = np.random.default_rng(seed)
    machine = Machine(config)
    bits = config.acc_bits
    for base in range(0, config.acc_depth, config.bank_depth):
        values = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), (config.bank_depth, config.cols))
        values >>= rng.integers(0, bits, values.shape)
        common = {"opcode": Opcode.ROWS, "source": Source.STREAM, "cols": config.cols}
        machine.post(values, **common, rows=config.bank_depth, write=1, dst_base=base)
    machine.post(values[:1], opcode=Opcode.BIAS)
    for register in range(16):
        scale = Scale(int(rng.integers(1 << 15, 1 << 16)), int(rng.integers(-bits, 3)))
        machine.post(opcode=Opcode.SCALE_SET, dst=register, imm=scale_imm(scale))
    for register in range(8):
        machine.post(opcode=Opcode.AMAX_SET, dst=register, imm=register)
    if seed % 2:  # a delayed tensor without a record
        machine.post(opcode=Opcode.AMAX_SELECT, dst=1, src_a=0, src_b=2)
    run_sync(machine.flush())
    return machine


def join_fields(config: AcceleratorConfig, rng: np.random.Generator) -> dict[str, int]:
    """A random row operation that adds and writes, from the first bank to the second."""
    flags = ("bias", "negate", "sign", "amax", "transposed")
    fields = {name: int(rng.integers(0, 2)) for name in flags}
    fields |= {"rows": int(rng.integers(1, 9)), "cols": int(rng.integers(1, config.cols + 1))}
    fields |= {"mode": int(rng.integers(0, 2)), "limit": int(rng.integers(0, 3))}
    fields |= {"status": int(rng.integers(0, 4)), "src_a": int(rng.integers(0, 16))}
    fields |= {"add": 1, "add_stream": int(rng.integers(0, 2)), "write": 1}
    return fields | {"opcode": Opcode.ROWS, "dst_base": config.bank_depth}


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("name", CONFIGS)
def test_equals_two_row_operations(name, seed):
    """Results, maxima, sums and status bits are those of the join and the quantization of it."""
    config = CONFIGS[name]
    rng = np.random.default_rng(seed)
    join = join_fields(config, rng)
    mode = Mode.INT16 if config.int16 and rng.integers(0, 2) else Mode.INT8
    rounding = {"stochastic": int(rng.integers(0, 2)), "delayed": int(rng.integers(0, 2))}
    rounding |= {"word0": int(rng.integers(0, 1 << 32)), "transposed": join.pop("transposed")}
    ratio = int(rng.integers(0, 16))
    beats = rng.integers(-(1 << 30), 1 << 30, (join["rows"], config.cols))
    outputs: list[Outputs] = []
    for fused in (False, True):
        machine = filled(config, seed)
        acc_in = beats if join["add_stream"] else None
        if fused:
            machine.post(acc_in, **join, **rounding, quantize=Quantize(mode), src_b=ratio)
        else:
            machine.post(acc_in, **join)
            again = {"rows": join["rows"], "cols": join["cols"], "src_base": join["dst_base"]}
            machine.post(opcode=Opcode.ROWS, mode=mode, **again, **rounding, src_a=ratio)
        machine.post(opcode=Opcode.COLLECT, dst=0)
        machine.post(opcode=Opcode.AMAX_READ, src_a=0)
        # With the value left where it was joined, or not
        machine.post(opcode=Opcode.ROWS, rows=config.bank_depth, cols=config.cols, emit=1,
                     src_base=config.bank_depth)  # fmt: skip
        outputs.append(run_sync(machine.flush()))
    two, one = outputs
    np.testing.assert_array_equal(one.result, two.result)
    np.testing.assert_array_equal(one.acc_out, two.acc_out)
    assert (one.info, one.sticky) == (two.info, two.sticky)
    assert len(one.result) == join["rows"]


def test_the_value_is_written_only_if_asked_for():
    machine = filled(TINY, 0)
    before = machine.acc.copy()
    machine.post(opcode=Opcode.ROWS, rows=4, cols=4, quantize=Quantize.INT8, src_b=3, negate=1)
    assert len(run_sync(machine.flush()).result) == 4
    np.testing.assert_array_equal(machine.acc, before)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quantize": 1}, "ROWS: quantize = 1: must be INT8 or INT16, without emit"),
        ({"quantize": 2, "emit": 1}, "ROWS: quantize = 2: must be INT8 or INT16, without emit"),
        ({"quantize": 2, "mode": Mode.INT8}, "quantize are of RAW and ACC only"),
    ],
)
def test_refused_commands(fields, message):
    machine = filled(TINY, 0)
    machine.post(**({"opcode": Opcode.ROWS, "rows": 1, "cols": 4} | fields))
    fails(machine, MachineError, message)


def test_what_a_configuration_refuses():
    fields = {"opcode": Opcode.ROWS, "rows": 1, "cols": 4}
    machine = filled(INT8, 0)
    machine.post(**fields, quantize=Quantize.INT16)
    fails(machine, MachineError, "8-bit results")
    machine = filled(preset("tiny"), 0)
    machine.post(**fields, quantize=Quantize.INT8)
    fails(machine, MachineError, "quantize = 2: this configuration has no fused_quantize")


JOINED = JOIN | {"quantize": Quantize.INT8, "out_address": OUT, "out_stride": 8}


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        (JOINED, Fault.NONE),
        (JOINED | {"write": 1, "dst_base": 2}, Fault.NONE),
        (JOINED | {"quantize": Quantize.INT16}, Fault.NONE),
        (JOINED | {"quantize": 1}, Fault.FIELD),
        (JOINED | {"emit": 1}, Fault.FIELD),
        (QUANT | {"quantize": Quantize.INT8}, Fault.FIELD),
        (JOINED | {"out_address": OUT + 2}, Fault.ALIGN),
        (JOINED | {"out_address": BASE - 8}, Fault.WINDOW),
        ({"opcode": Opcode.NOP, "quantize": 1}, Fault.NONE),  # only ROWS has the field
    ],
)
def test_checks_of_descriptors(fields, fault):
    """An accelerator without the second rescale knows no such field at all."""
    window = Window(BASE, BASE + SIZE)
    data = encode(Kind.POST, fields)
    assert Checker(TINY, window, window).check(data)[0] == fault
    assert Checker(preset("tiny"), window, window).check(data)[0] == Fault.FIELD
    int8 = TINY.with_fields(int16=False)
    wide = fields.get("quantize") == Quantize.INT16
    assert Checker(int8, window, window).check(data)[0] == (Fault.FIELD if wide else fault)


def test_the_bits_behind_the_last_field():
    window = Window(BASE, BASE + SIZE)
    word = int.from_bytes(encode(Kind.POST, ROWS), "little")
    data = (word | 1 << sum(field.width for field in POST_DESCRIPTOR)).to_bytes(64, "little")
    assert Checker(TINY, window, window).check(data)[0] == Fault.FIELD


def test_programs():
    """Through memory: two descriptors or one, with the same bytes."""
    rng = np.random.default_rng(7)
    sums, cached = rng.integers(-(1 << 20), 1 << 20, (2, 5, 4)).astype("<i4")
    tensors = []
    for fused in (False, True):
        bench = Bench(TINY)
        bench.put(DATA, sums)
        bench.put(DATA + 0x400, cached)
        builder = ProgramBuilder()
        for register, e in ((0, -1), (1, -14)):
            imm = scale_imm(Scale(50000, e))
            builder.post(Opcode.SCALE_SET, dst=register, imm=imm)
        rows = {"rows": 5, "cols": 4}
        builder.post(
            Opcode.ROWS, **rows, source=Source.STREAM, in_width=2, in_address=DATA, in_stride=16,
            write=1,
        )  # fmt: skip
        join = {**rows, "mode": Mode.ACC, "add": 1, "add_stream": 1, "in_width": 2}
        join |= {"in_address": DATA + 0x400, "in_stride": 16, "src_a": 0}
        last = {"out_address": OUT, "out_stride": 8, "stochastic": 1, "word0": 99}
        if fused:
            builder.post(Opcode.ROWS, **join, **last, quantize=Quantize.INT8, src_b=1)
        else:
            builder.post(Opcode.ROWS, **join, write=1)
            builder.post(Opcode.ROWS, **rows, **last, mode=Mode.INT8, src_a=1)
        bench.done(builder, word_base=1234)
        tensors.append(bench.get(OUT, "i1", 5, 8)[:, :4])
        assert disassemble(builder.parts[3]).count("quantize=INT8") == int(fused)
        assert assemble(disassemble(b"".join(builder.parts))) == b"".join(builder.parts)
    np.testing.assert_array_equal(*tensors)
    assert len(np.unique(tensors[0])) > 10


def test_what_the_compiler_appends():
    """A join of cached sums that leaves as the quantized tensor, in one descriptor."""
    cached = Symbol("sums", DATA, 8, 4, "int32", 64)
    target = Symbol("Y", OUT, 8, 4, "int8", 64)
    builder = PostBuilder(TINY, {})
    quantize = Quantization(target, "Y.scale", word=9, record=cached)
    fields = quantizing_value(quantize, 2, 0)
    places = cached.area(2, 3, 0, 4), target.area(2, 3, 0, 4)
    builder.join(32, *places, mode=Mode.ACC, src_a=1, src_b=2, amax=1, **fields)
    builder.rows(3, 4, 32, target.area(2, 3, 0, 4), negate=1, src_b=2, **fields)
    join, rows = (item for item in builder.items if isinstance(item, Post))
    two = {"stochastic": 1, "delayed": 1, "src_b": 2, "rows": 3, "out_address": OUT + 128}
    for item in (join, rows):
        assert item.fields.items() >= (two | {"quantize": Quantize.INT8}).items()
        assert not item.fields.get("emit") and item.acc == (Rows(32, 35),)
    assert join.fields["mode"] == Mode.ACC and join.fields["in_address"] == DATA + 128
    assert join.reads == places[0] and join.writes == places[1]


def test_its_scale_must_be_defined():
    bias = {"opcode": Opcode.SCALE_SET, "dst": 2}
    fields = ROWS | {"source": Source.STREAM, "in_address": DATA, "in_stride": 8}
    fields |= {"quantize": Quantize.INT8, "src_a": 2, "src_b": 9, "out_address": OUT}
    undefined("uses scale 9", (Kind.POST, bias), (Kind.POST, fields), config=TINY)


def test_what_software_can_know():
    """A bit of the register ARRAY; the digest of a configuration without it stays as it was."""
    for config in CONFIGS.values():
        without = config.with_fields(fused_quantize=False)
        bits = register_constants(config)["ARRAY"] ^ register_constants(without)["ARRAY"]
        assert bits == 1 << 25
        assert config.digest != without.digest
    assert preset("paper").fused_quantize and not preset("default").fused_quantize
    assert preset("tiny").digest == "060dfa3b12f4"


def test_statuses_and_limits_are_those_of_the_value():
    """The second rescale saturates to its own limit and sets clip_delayed alone."""
    machine = filled(TINY, 0)
    machine.post(opcode=Opcode.SCALE_SET, dst=0, imm=scale_imm(Scale(1 << 15, 20)))
    fields = {"opcode": Opcode.ROWS, "rows": 9, "cols": 4, "quantize": Quantize.INT8, "src_b": 0}
    before = run_sync(machine.flush()).sticky
    machine.post(**fields, limit=Limit.ACC, status=Status.ACC_SAT)
    assert run_sync(machine.flush()).sticky == before
    machine.post(**fields, delayed=1)
    assert run_sync(machine.flush()).sticky & ~before == 1 << 2
