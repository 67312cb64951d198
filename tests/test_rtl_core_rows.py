"""Row operations back to back in a simulator: what must wait does, and nothing else."""

import numpy as np
import pytest

from simulated import CACHE, CONFIGS, core_verilog
from systolora.config import AcceleratorConfig
from systolora.contract import Limit, Mode, Opcode, Source, Status
from systolora_sim.bench.run import run_program
from systolora_sim.machine import Machine
from systolora_sim.numerics import Scale
from systolora_sim.program import Program, post_beats, run_sync, scale_imm
from test_rtl_core import assert_same, random_program

ROWS, FILLED = Opcode.ROWS, 16
A, B, C = 0, 32, 64  # first rows of banks of the configuration `tiny`
EMIT = {"opcode": ROWS, "emit": 1}
QUANTIZE = {"opcode": ROWS, "mode": Mode.INT8}
STREAM = {"opcode": ROWS, "source": Source.STREAM, "emit": 1}
ADD = {"opcode": ROWS, "add": 1}


def run_posts(posts: list[dict[str, int]], config: AcceleratorConfig | None = None) -> int:
    """The commands on three banks of random values, against the machine; returns the cycles."""
    config = config or CONFIGS["tiny"]
    rng = np.random.default_rng(len(posts))
    device = Machine(config)

    def post(fields: dict[str, int]) -> None:
        fields = {"cols": config.cols, **fields} if fields["opcode"] == ROWS else fields
        beats = post_beats(fields)["acc_in"]
        values = rng.integers(-1000, 1000, (beats, config.cols))
        device.post(values if beats else None, **fields)

    for number in range(16):
        scale = Scale(40000 + number, -3 - number % 4)
        post({"opcode": Opcode.SCALE_SET, "dst": number, "imm": scale_imm(scale)})
    for base in (A, B, C):
        post({**STREAM, "emit": 0, "write": 1, "rows": FILLED, "dst_base": base})
    post({"opcode": Opcode.BIAS})
    for number in range(8):
        post({"opcode": Opcode.AMAX_SET, "dst": number})
    for fields in posts:
        post(fields)
    program = Program([], list(device.pending.posts))
    outputs = run_program(config, program, core_verilog(config), None, cache=CACHE)
    assert_same(outputs, run_sync(device.flush()))
    assert outputs.cycles is not None
    return outputs.cycles


AMAX_READ = [{"opcode": Opcode.COLLECT}, {"opcode": Opcode.AMAX_READ}]
COUNTS = [(first, second) for first in (1, 2, 5, 9, 16) for second in (1, 4, 16)]


@pytest.mark.parametrize(("first", "second"), COUNTS)
def test_reads_what_was_written(first, second):
    """As the source or as the destination, the same rows or rows that are further on."""
    second = min(second, first)
    writes = {**EMIT, "emit": 0, "write": 1, "src_base": A, "dst_base": B, "rows": first}
    last = B + first - second
    for reader in (
        {**EMIT, "src_base": B, "rows": second},
        {**EMIT, "src_base": last, "rows": second},
        {**EMIT, **ADD, "src_base": C, "dst_base": last, "rows": second},
    ):
        run_posts([writes, reader])


def test_reads_of_one_bank_in_one_cycle():
    """A row reads its destination after younger rows read their sources."""
    for count in (1, 3, 8, 16):
        adds = {**EMIT, **ADD, "src_base": A, "dst_base": B, "rows": count}
        between = {**EMIT, "src_base": C, "rows": 1}
        reads = {**EMIT, "src_base": B, "rows": 16}
        run_posts([adds, reads, adds, between, reads])


def test_maxima_of_value_and_source():
    """The lane measures one magnitude per cycle."""
    for count in (1, 4, 16):
        value = {**EMIT, "emit": 0, "amax": 1, "src_base": A, "rows": count, "negate": 1}
        source = {**QUANTIZE, "amax": 1, "src_base": C, "rows": 12, "cols": 1}
        run_posts([value, source, *AMAX_READ, source, value, *AMAX_READ])


def test_beats_stay_in_order():
    """Rows that start as a beat wait for those that are joined with one later."""
    for count in (1, 4, 12):
        joins = {**EMIT, **ADD, "add_stream": 1, "src_base": A, "rows": count}
        run_posts([joins, {**STREAM, "rows": 5}, joins, joins])


def test_controls_travel_with_the_rows():
    """One row each, of operations that differ in everything."""
    posts = []
    for number in range(48):
        mode = (Mode.RAW, Mode.ACC, Mode.INT8, Mode.INT16)[number % 4]
        fields = {"opcode": ROWS, "mode": mode, "rows": 1 + number % 3, "src_base": number % 13}
        fields |= {"src_a": number % 16, "cols": 1 + number % 4, "word0": 77 * number}
        fields |= {"stochastic": number // 2 % 2, "transposed": number // 3 % 2}
        fields |= {"sign": int(number % 11 == 0)}
        if mode in (Mode.RAW, Mode.ACC):
            fields |= {"bias": number // 4 % 2, "negate": number // 8 % 2, "emit": 1}
            fields |= {"limit": Limit(number // 5 % 3), "status": Status(number // 7 % 4)}
        posts.append(fields)
    run_posts(posts)


@pytest.mark.parametrize("status", [Status.ACC_SAT, Status.MASTER, Status.NONE])
def test_status_of_the_row_that_saturates(status):
    """Neighbours that name other bits, or none, set nothing."""
    wide = {"opcode": Opcode.SCALE_SET, "dst": 0, "imm": scale_imm(Scale(40000, 30))}
    quiet = {**EMIT, "rows": 1, "status": Status.MOMENTUM}
    loud = {**EMIT, "mode": Mode.ACC, "limit": Limit.INT16, "rows": 2, "status": status}
    read = {"opcode": Opcode.STICKY_READ}
    run_posts([wide, quiet, loud, quiet, quiet, read])


def test_other_commands_wait_for_all_rows():
    """They change what rows in the pipeline still use, or read what those still write."""
    biased = {**EMIT, "bias": 1, "src_base": A, "rows": 4}
    delayed = {**QUANTIZE, "delayed": 1, "src_base": A, "rows": 4, "src_a": 0}
    loud = {"opcode": Opcode.SCALE_SET, "dst": 0, "imm": scale_imm(Scale(40000, 8))}
    select = {"opcode": Opcode.AMAX_SELECT, "dst": 7, "src_a": 6, "src_b": 5}
    read = {"opcode": Opcode.STICKY_READ}
    amax = {**EMIT, "amax": 1, "src_base": B, "rows": 3}
    run_posts([biased, {"opcode": Opcode.BIAS}, biased, amax, *AMAX_READ])
    run_posts([loud, delayed, select, read])
    run_posts([loud, delayed, read])


PAIRS = {
    "no-hazard": ({**EMIT, "src_base": A}, {**EMIT, "src_base": A}, 0),
    "stream-after-stream": (STREAM, STREAM, 0),
    "join-then-quantize": (
        {**ADD, "add_stream": 1, "write": 1, "src_base": A, "dst_base": A},
        {**QUANTIZE, "src_base": A},
        0,
    ),
    "add-then-quantize": (
        {**ADD, "write": 1, "src_base": A, "dst_base": B},
        {**QUANTIZE, "src_base": B},
        5,
    ),
    "join-then-stream": ({**ADD, "add_stream": 1, "src_base": A}, STREAM, 7),
    "value-then-source": (
        {**EMIT, "emit": 0, "amax": 1, "src_base": A},
        {**QUANTIZE, "amax": 1, "src_base": B},
        6,
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_cost_of_a_pair(name):
    """Cycles that a ROWS adds to the one before it: its rows, one, and what a hazard takes."""
    first, second, hazard = PAIRS[name]
    single = run_posts([{**first, "rows": 16}])
    pair = run_posts([{**first, "rows": 16}, {**second, "rows": 16}])
    outputs = int(bool(second.get("emit") or second.get("mode"))) - int(bool(first.get("emit")))
    assert pair - single == 16 + 1 + hazard + outputs


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", CONFIGS)
def test_random_row_operations(name, seed):
    """Hardly anything but ROWS, of random banks, lengths and fields, beside tiles, with stalls."""
    config = CONFIGS[name]
    print(f"seed {seed}, configuration {config.digest}")
    program, expected = random_program(config, seed, 6, row_operations=400, posts=40)
    stall_seed = None if seed % 2 == 0 else seed
    assert_same(
        run_program(config, program, core_verilog(config), stall_seed, cache=CACHE), expected
    )
