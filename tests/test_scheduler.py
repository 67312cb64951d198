"""The scheduler: optimal among all combinations on small steps, and never a different bit."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from systolora.config import AcceleratorConfig, preset
from systolora.contract import Kind
from systolora_sim import scheduler
from systolora_sim.bench.cases import random_state
from systolora_sim.cycle_model import time_program
from systolora_sim.descriptor import decode
from systolora_sim.limits import CompileError
from systolora_sim.lowering import compile_training
from systolora_sim.machine_backend import run_program
from systolora_sim.schedules import StepSchedule, step_schedule
from systolora_sim.step_program import StepProgram, read_back
from systolora_sim.training import TrainingResult, TrainingState, run_steps
from test_training import same

SEED = 5400
OUTPUTS = frozenset({"Y", "dX"})
DEEP = AcceleratorConfig(rows=8, cols=8, segments=2, acc_depth=128, bus_bits=128)
CONFIGS = {"tiny": preset("tiny"), "8x8": DEEP, "s1": DEEP.with_fields(segments=1)}


def shared(shapes: list[tuple[int, int, int, int]], **fields) -> TrainingState:
    """Layers of the given shapes (N, d, k, r), those of equal N and d with one x."""
    state = random_state(SEED, shapes, "sgd", **fields)
    inputs = {}
    layers = {}
    for name, each in state.layers.items():
        key = each.layer.batch, each.layer.inputs
        x, scale = inputs.setdefault(key, (each.layer.x, each.layer.scales["x"]))
        layer = replace(each.layer, x=x, scales=each.layer.scales | {"x": scale})
        layers[name] = replace(each, layer=layer)
    return replace(state, layers=layers)


def without_dx(state: TrainingState) -> TrainingState:
    layers = {
        name: replace(each, layer=replace(each.layer, want_dx=False))
        for name, each in state.layers.items()
    }
    return replace(state, layers=layers)


def cycles(program: StepProgram) -> int:
    return time_program(program.config, program.program).cycles


def every_schedule(state: TrainingState, config: AcceleratorConfig):
    """All combinations, layers of one kind alike: not made by the scheduler's search."""
    kinds = list(scheduler.kinds(state).values())
    choices = [scheduler.candidates(state.layers[names[0]].layer, config) for names in kinds]
    for chosen in itertools.product(*choices):
        layers = {
            name: schedule for names, schedule in zip(kinds, chosen, strict=True) for name in names
        }
        for together in (True, False):
            yield StepSchedule("best", layers, together)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize(
    "shapes",
    [[(20, 40, 24, 3)], [(40, 24, 16, 2), (40, 24, 16, 2)], [(12, 50, 30, 9)]],
    ids=["one", "two", "rank"],
)
def test_the_pick_is_optimal(shapes, config):
    state = shared(shapes, delayed=OUTPUTS, amax=dict.fromkeys(OUTPUTS, 5000))
    found = scheduler.pick(state, config)
    best = min(
        cycles(compile_training(state, config, schedule=each))
        for each in every_schedule(state, config)
    )
    assert found.cycles == best
    assert cycles(compile_training(state, config, schedule=found.schedule)) == best
    assert best <= cycles(compile_training(state, config))


def test_the_search_finds_the_optimum_of_many_combinations(monkeypatch):
    """Kind by kind, without trying all of them."""
    shapes = [(40, 24, 16, 2), (12, 50, 30, 9)]
    state = shared(shapes, delayed=OUTPUTS, amax=dict.fromkeys(OUTPUTS, 5000))
    monkeypatch.setattr(scheduler, "ALL", 0)
    found = scheduler.pick(state, DEEP)
    everything = list(every_schedule(state, DEEP))
    assert found.tried < len(everything) / 2
    # No two of them have one x: whether x is shared makes no difference.
    best = min(cycles(compile_training(state, DEEP, schedule=each)) for each in everything[::2])
    assert found.cycles == best


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_combination_leaves_the_golden_bits(config):
    shapes = [(37, 13, 11, 2), (37, 13, 11, 2)]
    state = shared(shapes, delayed=OUTPUTS, amax={"Y": 5000})
    want = run_steps(state, 1)
    for schedule in every_schedule(state, config):
        program = compile_training(state, config, schedule=schedule)
        got = read_back(program, run_program(program, 1), 1)
        assert isinstance(got, TrainingResult)
        assert same(got, want), schedule


def loads_of(program: StepProgram, name: str) -> int:
    """Bytes that LOADs bring of a tensor."""
    symbol, total = program.symbols[name], 0
    for data in program.program:
        kind, fields = decode(data.tobytes())
        if kind == Kind.LOAD and symbol.address <= fields["address"] < symbol.address + symbol.size:
            total += fields["rows"] * fields["row_bytes"]
    return total


@pytest.mark.parametrize("shape", [(200, 16, 64, 3), (40, 16, 600, 3), (200, 16, 600, 3)])
def test_dy_is_loaded_once(shape):
    """By columns, by rows, and not at all where neither way's sums fit the accumulators."""
    config = DEEP.with_fields(wgt_bytes=1 << 14)
    state = without_dx(random_state(SEED, [shape], "sgd"))
    schedule = step_schedule("auto", state.layers)
    apart = {name: replace(each, pair=False) for name, each in schedule.layers.items()}
    once = compile_training(state, config)
    twice = compile_training(state, config, schedule=replace(schedule, layers=apart))
    size = shape[0] * shape[2]
    assert loads_of(twice, "layer0/dy") >= 2 * size
    fits = min(-(-shape[0] // 8), -(-shape[2] // 8)) * shape[3] <= config.bank_depth
    assert (loads_of(once, "layer0/dy") == size) == fits
    for program in (once, twice):
        got = read_back(program, run_program(program, 1), 1)
        assert isinstance(got, TrainingResult)
        assert same(got, run_steps(state, 1))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_cached_base_product_leaves_the_golden_bits(config, bits):
    wide = dict.fromkeys(("x", "weight", "lora_A", "lora_B", "dy", "H", "Y", "dH"), bits)
    state = without_dx(
        shared([(40, 24, 16, 2), (40, 24, 9, 3)], delayed=frozenset({"Y"}), bits=wide)
    )
    program = compile_training(state, config, cache_base=True)
    image = run_program(program, 2)  # the sums are still there in the second step
    got = read_back(program, image, 2)
    assert isinstance(got, TrainingResult)
    assert same(got, run_steps(state, 2))
    assert not any(label.split()[0] == "Y" and kind == Kind.EXEC for kind, label in labels(program))
    for name, each in state.layers.items():
        base = program.symbols[f"{name}/Y_base"].read(program.image, program.base)
        want = each.layer.x.astype(np.int64) @ each.layer.weight.T.astype(np.int64)
        np.testing.assert_array_equal(base, want)


def labels(program: StepProgram) -> list[tuple[int, str]]:
    kinds = [int(data[0]) & 0xF for data in program.program]
    return [(k, label) for k, label in zip(kinds, program.labels, strict=True) if label]


def test_a_cached_base_product_is_refused_where_x_is_no_constant():
    state = random_state(SEED, [(40, 24, 16, 2)], "sgd")
    with pytest.raises(CompileError, match=r"layer layer0: cache_base: dX is asked for"):
        compile_training(state, DEEP, cache_base=True)


def orders(config: AcceleratorConfig) -> dict[bool | None, StepProgram]:
    """Y of an x of which no row block fits its buffer, by `columns_first`."""
    config = config.with_fields(act_bytes=1 << 12, wgt_bytes=1 << 12)
    state = random_state(SEED, [(200, 300, 40, 2)], "sgd", delayed=OUTPUTS, amax={"Y": 5000})
    schedule = step_schedule("auto", state.layers)
    programs = {}
    for order in (None, True, False):
        layers = {n: replace(each, columns_first=order) for n, each in schedule.layers.items()}
        programs[order] = compile_training(
            state, config, "forward", schedule=replace(schedule, layers=layers)
        )
    return programs


def operand_loads(program: StepProgram) -> tuple[int, int]:
    return loads_of(program, "layer0/x"), loads_of(program, "layer0/weight")


def test_rows_that_do_not_stay_leave_the_weights_to_do_so():
    """With short banks all rows pass a column block of the weight.

    x comes once for each column block; in the other order the weight comes for each row block, of
    which there are many.
    """
    programs = orders(DEEP.with_fields(acc_depth=64))
    x, weight = operand_loads(programs[None])
    assert weight == 40 * 300
    assert x > 4 * 200 * 300
    assert operand_loads(programs[False])[1] > 4 * weight
    assert operand_loads(programs[True]) == (x, weight)
    assert sum(operand_loads(programs[False])) > x + weight
    assert cycles(programs[None]) < cycles(programs[False])


def test_rows_that_do_not_stay_serve_several_column_blocks():
    """With long banks x comes once for a panel of column blocks, which reads less in all.

    That is faster where the memory is slow, and slower by the turns of the banks where it is not:
    all banks of a panel end their sums at almost the same time.
    """
    programs = orders(DEEP)
    x, weight = operand_loads(programs[None])
    assert operand_loads(programs[False]) == (x, weight)
    by_columns = operand_loads(programs[True])
    assert by_columns[1] == 40 * 300
    assert x < 0.7 * by_columns[0]
    assert x + weight < 0.9 * sum(by_columns)
    slow = {
        order: time_program(each.config, each.program, memory_latency=200).cycles
        for order, each in programs.items()
    }
    assert slow[None] < slow[True]
    assert cycles(programs[None]) < 1.05 * cycles(programs[True])
