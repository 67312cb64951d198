"""Row operations that quantize their values, in a simulator: order, distances and rates."""

import numpy as np
import pytest

from random_programs import BASE, HALF
from simulated import CACHE, CONFIGS, core_verilog
from system_rtl import Case, Script, compare_end, system_simulator
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
)
from systolora_sim.bench.run import run_program
from systolora_sim.descriptor import encode
from systolora_sim.machine import Machine
from systolora_sim.numerics import Scale
from systolora_sim.program import Program, run_sync, scale_imm
from test_rtl_core import assert_same
from test_rtl_core_rows import ADD, AMAX_READ, EMIT, QUANTIZE, STREAM, A, B, C, run_posts

CONFIG = CONFIGS["tiny"].with_fields(fused_quantize=True)
FUSED = {"opcode": Opcode.ROWS, "quantize": Quantize.INT8, "src_b": 3}
JOIN = {**ADD, "mode": Mode.ACC, "add_stream": 1}
DITHERED = {**FUSED, "stochastic": 1, "word0": 1234}
SILENT = {"opcode": Opcode.ROWS, "src_base": C}
ACC_DITHERED = {**SILENT, "mode": Mode.ACC, "stochastic": 1, "write": 1, "dst_base": B}


def test_every_field_travels_with_its_row():
    """Rows of one to three, of operations that differ in everything, on both paths."""
    posts = []
    for number in range(64):
        mode = (Mode.RAW, Mode.ACC)[number % 2]
        fields = {"opcode": Opcode.ROWS, "mode": mode, "rows": 1 + number % 3}
        fields |= {"src_base": number % 13, "src_a": number % 16, "src_b": (number + 5) % 16}
        fields |= {"cols": 1 + number % 4, "word0": 77 * number, "amax": number // 6 % 2}
        fields |= {"stochastic": number // 2 % 2, "transposed": number // 3 % 2}
        fields |= {"delayed": number // 4 % 2, "bias": number // 5 % 2}
        fields |= {"limit": Limit(number // 7 % 3), "status": Status(number // 9 % 4)}
        if number % 4:
            fields["quantize"] = Quantize(2 + number // 8 % 2)
        else:
            fields["emit"] = 1
        posts += [fields, *AMAX_READ] if number % 16 == 15 else [fields]
    run_posts(posts, CONFIG)


@pytest.mark.parametrize("parity", range(2))
def test_results_stay_in_order(parity):
    """What is sent sooner, or needs its random word sooner, any number of cycles later."""
    posts = []
    for between in range(parity, 10, 2):
        silent = [{**SILENT, "rows": between}] if between else []
        for second in (EMIT, QUANTIZE, {**QUANTIZE, "stochastic": 1}, ACC_DITHERED, DITHERED):
            for first in (FUSED, DITHERED):
                posts += [{**first, "rows": 2}, *silent, {**second, "rows": 3}]
    run_posts(posts, CONFIG)


def test_joins_with_everything():
    """Beats, both banks, the value written to where it came from, its maximum; other widths."""
    common = {**JOIN, "amax": 1, "src_base": A, "rows": 12, "src_b": 3}
    for bits in (Quantize.INT8, Quantize.INT16):
        fused = {**common, "quantize": bits, "stochastic": 1, "word0": 5}
        written = {**fused, "write": 1, "dst_base": A, "transposed": 1}
        run_posts([fused, written, {**EMIT, "src_base": A, "rows": 12}, *AMAX_READ], CONFIG)


def test_padding_never_counts():
    """It would clip, but leaves as 0 and sets nothing."""
    machine = Machine(CONFIG)
    machine.post(opcode=Opcode.SCALE_SET, dst=3, imm=scale_imm(Scale(1 << 15, 0)))
    fields = {**FUSED, "source": Source.STREAM, "delayed": 1, "rows": 2, "cols": 2}
    machine.post(np.array([[1, -127, 1000, -1000], [127, 2, 1 << 40, 128]]), **fields)
    program = Program([], list(machine.pending.posts))
    outputs = run_program(CONFIG, program, core_verilog(CONFIG), None, cache=CACHE)
    assert_same(outputs, run_sync(machine.flush()))
    assert outputs.result.tolist() == [[1, -127, 0, 0], [127, 2, 0, 0]] and outputs.sticky == 0


def test_other_commands_wait_for_results():
    """The register, the record and the status bits that rows still use, or still set."""
    loud = {"opcode": Opcode.SCALE_SET, "dst": 3, "imm": scale_imm(Scale(40000, 8))}
    quiet = {"opcode": Opcode.SCALE_SET, "dst": 3, "imm": scale_imm(Scale(40000, -9))}
    select = {"opcode": Opcode.AMAX_SELECT, "dst": 7, "src_a": 6, "src_b": 5}
    read = {"opcode": Opcode.STICKY_READ}
    fused = {**FUSED, "src_base": A, "rows": 4}
    delayed = {**fused, "delayed": 1}
    run_posts([fused, loud, fused, quiet, fused], CONFIG)
    run_posts([loud, delayed, select, read], CONFIG)
    run_posts([loud, delayed, read], CONFIG)
    run_posts([loud, fused, read], CONFIG)
    run_posts([loud, select, delayed, read, {**QUANTIZE, "rows": 1, "src_a": 3}], CONFIG)
    # A plain row behind it is done before it
    run_posts([loud, delayed, {**SILENT, "rows": 1}, read], CONFIG)


PAIRS = {
    "fused": (FUSED, FUSED, 0),
    "stochastic": (DITHERED, DITHERED, 0),
    "silent": (FUSED, SILENT, 0),
    "emit": (FUSED, EMIT, 4),
    "quantize": (FUSED, QUANTIZE, 4),
    "stochastic-quantize": (DITHERED, {**QUANTIZE, "stochastic": 1}, 6),
    "stochastic-value": (DITHERED, ACC_DITHERED, 6),
    "quantize-first": ({**QUANTIZE, "stochastic": 1}, DITHERED, 0),
    "stream": (FUSED, {**STREAM, "emit": 0, "write": 1}, 0),
}


@pytest.mark.parametrize("name", PAIRS)
def test_cost_of_a_pair(name):
    """Cycles that the second one starts later than it would behind rows without results."""
    first, second, hazard = PAIRS[name]
    last = {**FUSED, "src_base": B, "rows": 1}  # the end is the same
    first, second = {**first, "rows": 12}, {**second, "rows": 12}
    pair = run_posts([first, second, last], CONFIG)
    alone = run_posts([{**SILENT, "rows": 12}, second, last], CONFIG)
    assert pair - alone == hazard


ROWS = {"opcode": Opcode.ROWS, "rows": 2, "cols": 3, "out_address": BASE + HALF, "out_stride": 512}
DESCRIPTORS = [
    ROWS | {"quantize": 1},
    ROWS | {"quantize": Quantize.INT8},
    ROWS | {"quantize": Quantize.INT8, "emit": 1},
    ROWS | {"quantize": Quantize.INT8, "mode": Mode.INT8},
    ROWS | {"quantize": Quantize.INT8, "out_address": BASE + HALF + 1},
    ROWS | {"quantize": Quantize.INT8, "out_address": BASE + HALF - 64},
    ROWS | {"quantize": Quantize.INT16, "out_width": 1},
    {"opcode": Opcode.NOP, "quantize": 1},
]


@pytest.mark.parametrize("name", ["tiny", "8x4s4", "4x8s2-int8"])
def test_faults_of_descriptors(name, tmp_path):
    """Without the second rescale all are refused, with it those that break a rule."""
    good, script = Case.random(name, 6300), Script(tmp_path)
    bank = {"opcode": Opcode.ROWS, "rows": 2, "cols": 1, "source": Source.STREAM, "write": 1}
    defined = encode(Kind.POST, bank | {"in_address": BASE + 0x8000, "in_stride": 128})
    bits = len(encode(Kind.POST)) * 8 - 1
    cases = []
    for fields in DESCRIPTORS:
        cases.append(good.with_program([defined, encode(Kind.POST, fields), *good.descriptors]))
    beyond = int.from_bytes(defined, "little")
    for bit in (sum(field.width for field in POST_DESCRIPTOR), bits):
        parts = [defined, (beyond | 1 << bit).to_bytes(64, "little"), *good.descriptors]
        cases.append(good.with_program(parts))
    numbers = [script.run(case) for case in cases]
    ends, _ = script.execute(system_simulator(name), good)
    for number, case in zip(numbers, cases, strict=True):
        compare_end(case, ends[number])
    faults = [ends[number].fault for number in numbers]
    if name == "tiny":
        assert set(faults) == {Fault.FIELD}
    else:
        wide = Fault.NONE if CONFIGS[name].int16 else Fault.FIELD
        F, N = Fault.FIELD, Fault.NONE
        assert faults == [F, N, F, F, Fault.ALIGN, Fault.WINDOW, wide, N, F, F]


@pytest.mark.parametrize("fields", [FUSED, {**FUSED, **JOIN}, {**FUSED, "write": 1, "dst_base": B}])
def test_one_row_per_cycle(fields):
    few, many = (run_posts([{**fields, "rows": rows}] * 3, CONFIG) for rows in (4, 16))
    assert many - few == 3 * 12
