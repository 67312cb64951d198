"""The update and the working copies on the Core: every bit equal to the golden model's.

The functional machine for many shapes, rules and extremes; the RTL in Verilator for a few, with and
without stalls on every stream; whole training steps on both.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulated import CACHE, core_verilog
from systolora.config import AcceleratorConfig, preset
from systolora.contract import Opcode, Source
from systolora_sim import golden
from systolora_sim import numerics as nx
from systolora_sim.bench.cases import random_layer
from systolora_sim.bench.jobs import load_job, save_job
from systolora_sim.bench.run import run_program, run_training
from systolora_sim.calibrate import make_optimizer
from systolora_sim.compiler import CompileError
from systolora_sim.device_training import TrainingJob, machine_backend
from systolora_sim.device_update import UpdateRecord, update_on_device, working_copy_on_device
from systolora_sim.golden import OPTIMIZERS, Master, Optimizer
from systolora_sim.layer import LayerResult
from systolora_sim.machine import Machine
from systolora_sim.numerics import ONE, ZERO, Scale
from systolora_sim.program import CoreDevice, Outputs, Program, run_sync
from systolora_sim.training import LayerState, TrainingState, new_master, run_steps

CONFIGS = {
    "tiny": preset("tiny"),
    "default": preset("default"),
    "8x4s4": AcceleratorConfig(rows=8, cols=4, segments=4, int16=True, acc_depth=16),
    "4x8s2-int8": AcceleratorConfig(rows=4, cols=8, segments=2, int16=False, acc_depth=64),
}
#: Those whose simulators are built.
RTL_CONFIGS = ("tiny", "4x8s2-int8")
#: (rows, cols): one element; less than a row of lanes; odd; higher than a bank; many blocks.
SHAPES = ((1, 1), (1, 3), (3, 10), (70, 3), (3, 70), (16, 50))
ORDERS = ("tile_first", "post_first")


# Vectors --------------------------------------------------------------------------------------


def random_master(
    rng: np.random.Generator, shape: tuple[int, int], tensor_id: int, extremes: bool
) -> Master:
    """A master with momentum; with extremes, at the ends of int16."""

    def tensor() -> Any:
        if extremes:
            values = rng.choice([-32768, -32767, -1, 0, 1, 32766, 32767], shape)
        else:
            values = rng.integers(-3000, 3001, shape)
        return values.astype(np.int16)

    return Master(
        w=tensor(), scale=Scale(45000, -14), tensor_id=tensor_id, v=tensor(),
        v_scale=Scale(33333, -17),
    )  # fmt: skip


def random_gradient(
    rng: np.random.Generator, shape: tuple[int, int], bits: int, extremes: bool
) -> tuple[Any, Scale]:
    """Accumulators of that width with a scale; extremes reach both ends of the width."""
    if extremes:
        low, high = nx.int_range(bits)
        return rng.choice([low, low + 1, -1, 0, 1, high], shape), Scale(
            int(rng.integers(1 << 15, 1 << 16)), int(rng.integers(-70, 20))
        )
    return rng.integers(-(1 << 20), 1 << 20, shape), Scale(50000, -25)


def both(
    config: AcceleratorConfig, master: Master, gradient: Any, scale: Scale, optimizer: Optimizer,
    *, seed: int = -3, step: int = 7, **fields: Any,
) -> tuple[Master, set[str]]:  # fmt: skip
    """The update on the golden model and on the machine in both orders; asserts they agree."""
    sticky: set[str] = set()
    expected = golden.update(
        master, gradient, scale, optimizer, seed=seed, step=step, sticky=sticky
    )  # fmt: skip
    for order in ORDERS:
        got_sticky: set[str] = set()
        got = run_sync(
            update_on_device(
                Machine(config, order),
                master,
                gradient,
                scale,
                optimizer,
                seed=seed,
                step=step,
                sticky=got_sticky,
                **fields,
            )
        )
        assert_same_master(got, expected)
        assert got_sticky == sticky
    return expected, sticky


def assert_same_master(got: Master, expected: Master) -> None:
    np.testing.assert_array_equal(got.w, expected.w)
    assert got.w.dtype == expected.w.dtype
    assert (got.scale, got.tensor_id, got.v_scale) == (
        expected.scale, expected.tensor_id, expected.v_scale,
    )  # fmt: skip
    assert (got.v is None) == (expected.v is None)
    if got.v is not None and expected.v is not None:
        np.testing.assert_array_equal(got.v, expected.v)
        assert got.v.dtype == expected.v.dtype


# The machine ----------------------------------------------------------------------------------


@pytest.mark.parametrize("extremes", [False, True], ids=["plain", "extreme"])
@pytest.mark.parametrize("decay", [0.0, 0.25], ids=["no-decay", "decay"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", CONFIGS)
def test_update(name, kind, decay, extremes):
    """Every rule, for shapes that fill, split and underfill the buffer, in both layouts."""
    config = CONFIGS[name]
    seed = [*CONFIGS].index(name) * 100 + OPTIMIZERS.index(kind) * 10 + 2 * extremes + bool(decay)
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    optimizer = make_optimizer(kind, 0.01, weight_decay=decay)
    moved = False
    for shape in SHAPES:
        for tensor_id in (4, 5):
            master = random_master(rng, shape, tensor_id, extremes)
            bits = int(rng.choice([32, config.acc_bits]))
            gradient, scale = random_gradient(rng, shape, bits, extremes)
            after, _ = both(config, master, gradient, scale, optimizer)
            moved = moved or bool((after.w != master.w).any())
    assert moved


def test_extremes_reach_every_sticky_bit():
    """The extreme vectors of `test_update` are not vacuous: each bit is set, and each is not."""
    rng = np.random.default_rng(11)
    seen: dict[str, set[bool]] = {}
    for trial in range(60):
        kind = OPTIMIZERS[trial % 3]
        master = random_master(rng, (3, 5), 2, extremes=True)
        gradient, scale = random_gradient(rng, (3, 5), 48, extremes=True)
        if trial % 5 == 0:
            scale = Scale(40000, int(rng.choice([-512, 511])))
        optimizer = make_optimizer(kind, 2.0 ** int(rng.integers(-12, 3)), weight_decay=0.01)
        _, sticky = both(CONFIGS["tiny"], master, gradient, scale, optimizer)
        for bit in ("master_range", "momentum_range", "scale_range"):
            seen.setdefault(bit, set()).add(bit in sticky)
    assert seen == {bit: {False, True} for bit in seen} and len(seen) == 3


@given(data=st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_update_property(data):
    """Any scales and values, on the smallest buffers."""
    config = CONFIGS[data.draw(st.sampled_from([*CONFIGS]))]
    any_scale = st.builds(Scale, st.integers(nx.M_MIN, nx.M_MAX), st.integers(-80, 80))
    factor = st.one_of(
        st.just(ZERO), st.builds(Scale, st.integers(nx.M_MIN, nx.M_MAX), st.integers(-20, 2))
    )
    kind = data.draw(st.sampled_from(OPTIMIZERS))
    optimizer = Optimizer(
        kind=kind, lr=data.draw(any_scale), weight_decay=data.draw(factor),
        **{name: data.draw(factor) for name in ("beta", "b1", "b1c", "b2", "b2c")},
    )  # fmt: skip
    rows, cols = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    master = Master(
        w=rng.integers(-32768, 32768, (rows, cols)).astype(np.int16), scale=data.draw(any_scale),
        tensor_id=data.draw(st.integers(0, 1 << 29)),
        v=rng.integers(-32768, 32768, (rows, cols)).astype(np.int16), v_scale=data.draw(any_scale),
    )  # fmt: skip
    size = data.draw(st.integers(1, config.acc_bits - 1))
    gradient = rng.integers(-(1 << size), 1 << size, (rows, cols))
    both(
        config, master, gradient, data.draw(st.one_of(st.just(ZERO), any_scale)), optimizer,
        seed=data.draw(st.integers(-(1 << 31), (1 << 31) - 1)),
        step=data.draw(st.integers(0, (1 << 31) - 1)),
        transposed=data.draw(st.sampled_from([None, False, True])),
    )  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_lion_direction_of_a_sum_beyond_32_bits(name):
    """c of two saturated terms keeps its sign: same signs, opposite ones, and exact zero."""
    high = (1 << 31) - 1
    master = Master(
        w=np.zeros((1, 6), np.int16), scale=Scale(1 << 15, -10), tensor_id=0,
        v=np.array([[32767, -32768, 32767, -32768, 1, 0]], np.int16), v_scale=ONE,
    )  # fmt: skip
    # b1 = 2^40: both terms saturate; the range is one wider below, which decides a draw
    optimizer = Optimizer(
        kind="lion", lr=Scale(1 << 15, -8), b1=Scale(1 << 15, 40), b1c=ONE, b2=ONE, b2c=ONE,
    )  # fmt: skip
    gradient = np.array([[high, -high - 1, -high - 1, high, -high, 0]])
    after, sticky = both(CONFIGS[name], master, gradient, ONE, optimizer, seed=0, step=0)
    np.testing.assert_array_equal(after.w, [[-4, 4, 4, 4, 0, 0]])
    assert sticky == {"momentum_range"}


def test_saturated_term_sets_nothing():
    """A term beyond 32 bits is no event; the value that it leaves out of range is."""
    high = (1 << 31) - 1
    master = Master(
        w=np.full((1, 2), 5, np.int16), scale=ONE, tensor_id=0,
        v=np.array([[32767, -32768]], np.int16), v_scale=ONE,
    )  # fmt: skip
    # Both terms of v saturate, with opposite signs: v comes out small, and so does w
    optimizer = Optimizer(kind="momentum", lr=ONE, beta=Scale(1 << 15, 40))
    gradient = np.array([[-high, high]])
    after, sticky = both(
        CONFIGS["4x8s2-int8"], master, gradient, ONE, optimizer, seed=1, step=0
    )  # fmt: skip
    assert after.v is not None
    np.testing.assert_array_equal(after.v, [[0, -1]])
    np.testing.assert_array_equal(after.w, [[5, 6]])
    assert sticky == set()


@pytest.mark.parametrize("transposed", [False, True])
def test_layout_does_not_show(transposed):
    rng = np.random.default_rng(5)
    for tensor_id in (0, 1):
        master = random_master(rng, (5, 9), tensor_id, extremes=False)
        gradient, scale = random_gradient(rng, (5, 9), 32, extremes=False)
        for kind in OPTIMIZERS:
            optimizer = make_optimizer(kind, 0.01, weight_decay=0.1)
            both(CONFIGS["tiny"], master, gradient, scale, optimizer, transposed=transposed)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("name", CONFIGS)
def test_working_copy(name, bits):
    config = CONFIGS[name]
    rng = np.random.default_rng(bits)
    print(f"seed {bits}")
    if bits > config.result_bits:
        with pytest.raises(CompileError, match="without int16"):
            run_sync(
                working_copy_on_device(Machine(config), random_master(rng, (1, 1), 0, False), bits)
            )
        return
    for shape in SHAPES:
        for tensor_id in (0, 1):
            for top in (0, 1, 3, 100, 5000, 32767, 32768):
                w = np.clip(rng.integers(-top, top + 1, shape), -32768, 32767).astype(np.int16)
                w.flat[0] = -top
                master = Master(w=w, scale=Scale(45000, -14), tensor_id=tensor_id)
                expected = golden.working_copy(master, bits)
                for order in ORDERS:
                    sticky: set[str] = set()
                    got = run_sync(
                        working_copy_on_device(Machine(config, order), master, bits, sticky=sticky)
                    )
                    np.testing.assert_array_equal(got.q, expected.q)
                    assert got.q.dtype == expected.q.dtype
                    assert got[1:] == expected[1:]
                    assert sticky == set()


def test_working_copies_never_clip():
    """What the device leaves out: whatever its maximum, no element of a master is above qmax."""
    for bits in (8, 16):
        for top in range(1, 32769):
            q, clipped = nx.rescale([top], nx.quant_ratio(top, bits), 0, nx.qmax(bits))
            assert not clipped and q[0] >= nx.qmax(bits) - 1


def test_working_copy_scale_range():
    """A scale that leaves the exponents' range saturates, with the sticky bit."""
    master = Master(w=np.full((2, 2), 1, np.int16), scale=Scale(40000, -510), tensor_id=0)
    expected_sticky: set[str] = set()
    expected = golden.working_copy(master, 8, expected_sticky)
    sticky: set[str] = set()
    got = run_sync(working_copy_on_device(Machine(CONFIGS["tiny"]), master, 8, sticky=sticky))
    assert (got.scale, sticky) == (expected.scale, expected_sticky)
    assert sticky == {"scale_range"}


def test_records():
    """Rows streamed and processed are those that the module's table promises."""
    config, rng = CONFIGS["default"], np.random.default_rng(0)
    master = random_master(rng, (16, 320), 0, extremes=False)
    gradient, scale = random_gradient(rng, master.w.shape, 32, extremes=False)
    rows = 16 * 320 // config.cols
    for kind, passes, streamed in (("sgd", 2, 2), ("momentum", 4, 3), ("lion", 6, 5)):
        for decay in (0, 1):
            records: list[UpdateRecord] = []
            optimizer = make_optimizer(kind, 0.01, weight_decay=0.1 * decay)
            run_sync(
                update_on_device(
                    Machine(config), master, gradient, scale, optimizer, seed=0, step=0,
                    records=records,
                )
            )  # fmt: skip
            (record,) = records
            assert (record.name, record.kind, record.cycles) == ("update", kind, None)
            assert (record.rows, record.cols) == (16, 320)
            assert record.row_count == (passes + decay) * rows
            assert record.beats_in == (streamed + decay) * rows
            assert record.beats_out == (1 if kind == "sgd" else 2) * rows
    records = []
    run_sync(working_copy_on_device(Machine(config), master, 8, records=records))
    assert (records[0].row_count, records[0].beats_in) == (2 * rows, rows)
    # Beyond the 512 rows of the buffer it is streamed twice
    wide = Master(w=np.ones((16, 16 * 33), np.int16), scale=ONE, tensor_id=0)
    run_sync(working_copy_on_device(Machine(config), wide, 8, records=records))
    assert (records[1].row_count, records[1].beats_in) == (2 * 33 * 16, 2 * 33 * 16)


def test_refusals():
    machine = Machine(CONFIGS["4x8s2-int8"])
    master = random_master(np.random.default_rng(0), (2, 3), 0, extremes=False)
    sgd = make_optimizer("sgd", 0.1)

    def update(gradient: Any, optimizer: Optimizer = sgd, held: Master = master) -> None:
        run_sync(update_on_device(machine, held, gradient, ONE, optimizer, seed=0, step=0))

    with pytest.raises(ValueError, match=r"shape \(3, 2\): must be \(2, 3\)"):
        update(np.zeros((3, 2), np.int64))
    with pytest.raises(CompileError, match="more than 32 bits"):
        update(np.full((2, 3), 1 << 31))
    bare = Master(w=master.w, scale=master.scale, tensor_id=0)
    with pytest.raises(ValueError, match="no momentum"):
        update(np.zeros((2, 3), np.int64), make_optimizer("lion", 0.1), bare)
    with pytest.raises(ValueError, match="bits = 4"):
        run_sync(working_copy_on_device(machine, master, 4))
    assert not machine.pending.posts  # refused before anything was queued
    machine.post(opcode=Opcode.NOP)
    with pytest.raises(RuntimeError, match="flush"):
        update(np.zeros((2, 3), np.int64))


# Whole steps on the machine -------------------------------------------------------------------


def training_state(kind: str, seed: int, *, bits: dict[str, int] | None = None) -> TrainingState:
    """Two layers of different shapes, one with a bias, dX, a delayed and a stochastic tensor."""
    rng = np.random.default_rng(seed)
    v_scale = None if kind == "sgd" else Scale(40000, -24)
    layers = {}
    for index, (name, shape) in enumerate((("first", (3, 6, 5, 2)), ("second", (2, 9, 4, 5)))):
        fields: dict[str, Any] = {"delayed": frozenset({"H"}), "stochastic": frozenset({"dH"})}
        if index == 0:
            fields = {"bias": True, "want_dx": True}
        layer = random_layer(seed + index, *shape, bits=bits, **fields)
        masters = []
        for offset, tensor in enumerate(map(layer.operand, ("lora_A", "lora_B"))):
            w = rng.integers(-4000, 4000, tensor.shape).astype(np.int16)
            masters.append(new_master(w, Scale(40000, -15), 2 * index + offset, v_scale))
        layers[name] = LayerState(layer=layer, a=masters[0], b=masters[1])
    optimizer = make_optimizer(kind, 1e-3, weight_decay=0.1)
    return TrainingState(layers=layers, optimizer=optimizer, seed=seed, step=3)


def saturated(state: TrainingState) -> TrainingState:
    """The state with the first layer's master of lora_A at its limit and in a tiny unit."""
    layers = dict(state.layers)
    first = layers["first"]
    full = np.full_like(first.a.w, -32767)
    a = replace(first.a, w=full, scale=Scale(1 << 15, -30))
    layers["first"] = replace(first, a=a)
    return replace(state, layers=layers)


def assert_same_state(got: TrainingState, expected: TrainingState) -> None:
    assert (got.seed, got.step, got.optimizer) == (
        expected.seed, expected.step, expected.optimizer,
    )  # fmt: skip
    assert list(got.layers) == list(expected.layers)
    for name, layer in expected.layers.items():
        assert_same_master(got.layers[name].a, layer.a)
        assert_same_master(got.layers[name].b, layer.b)
        assert got.layers[name].layer.amax == layer.layer.amax
        assert got.layers[name].sticky == layer.sticky


def assert_same_result(got: LayerResult, expected: LayerResult) -> None:
    assert set(got.tensors) == set(expected.tensors)
    for name, tensor in expected.tensors.items():
        np.testing.assert_array_equal(got.tensors[name], tensor)
        assert got.tensors[name].dtype == tensor.dtype
    assert (got.scales, got.amax, got.sticky) == (
        expected.scales, expected.amax, expected.sticky,
    )  # fmt: skip


def assert_same_run(got: Any, expected: Any) -> None:
    assert_same_state(got.state, expected.state)
    assert list(got.results) == list(expected.results)
    for name, result in expected.results.items():
        assert_same_result(got.results[name], result)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", CONFIGS)
def test_steps_on_the_machine(name, kind):
    """Three steps of two layers: masters, momenta, records, results and sticky bits."""
    config = CONFIGS[name]
    bits = {"x": 16, "lora_A": 16} if config.int16 else None
    state = training_state(kind, 20, bits=bits)
    expected = run_steps(state, 3)
    assert (expected.state.layers["first"].a.w != state.layers["first"].a.w).any()
    assert (expected.state.layers["second"].b.w != state.layers["second"].b.w).any()
    for order in ORDERS:
        backend = machine_backend(config, order)
        assert_same_run(run_steps(state, 3, backend), expected)
        where = [(record.step, record.index) for record in backend.records]
        assert where == [(step, index) for step in (3, 4, 5) for index in (0, 1)]
        for record in backend.records:
            assert [copy.tensor_id for copy in record.copies] == [
                2 * record.index, 2 * record.index + 1,
            ]  # fmt: skip
            assert [update.tensor_id for update in record.updates] == [
                2 * record.index, 2 * record.index + 1,
            ]  # fmt: skip
            assert len(record.products) == (6 if record.index == 0 else 5)
            assert record.cycles is None


def test_sticky_bits_belong_to_their_layer_and_step():
    """A bit that one layer sets in one step shows up in no other layer and no other step."""
    state = saturated(training_state("sgd", 21))
    expected = run_steps(state, 2)
    assert "master_range" in expected.state.layers["first"].sticky
    assert "master_range" not in expected.state.layers["second"].sticky
    backend = machine_backend(CONFIGS["tiny"])
    assert_same_run(run_steps(state, 2, backend), expected)


@pytest.mark.parametrize("kind", ["sgd", "lion"])
def test_job_files(kind, tmp_path):
    """A training job comes back from its file as it was."""
    state = training_state(kind, 22)
    path = tmp_path / "job.npz"
    save_job(path, CONFIGS["tiny"], TrainingJob(state=state, steps=4), 9)
    config, job, stall_seed = load_job(path)
    assert (config, stall_seed) == (CONFIGS["tiny"], 9)
    assert isinstance(job, TrainingJob) and job.steps == 4
    assert_same_state(job.state, state)
    assert_same_run(run_steps(job.state, 1), run_steps(state, 1))


# The RTL --------------------------------------------------------------------------------------


class _Recorder(Machine):
    """A machine that keeps what it was told to do, and what that gave."""

    program: Program
    outputs: Outputs

    async def flush(self) -> Outputs:
        self.program = Program(list(self.pending.tiles), list(self.pending.posts))
        self.outputs = await super().flush()
        return self.outputs


class _Replay(CoreDevice):
    """A device that gives what the simulation of the same program gave."""

    def __init__(self, config: AcceleratorConfig, outputs: Outputs) -> None:
        super().__init__(config)
        self.outputs = outputs

    async def flush(self) -> Outputs:
        self.pending = Program()
        return self.outputs


def assert_same_outputs(got: Outputs, expected: Outputs) -> None:
    for name in ("result", "acc_out"):
        assert getattr(got, name).shape == getattr(expected, name).shape
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
    assert got.info == expected.info
    assert got.sticky == expected.sticky


@pytest.mark.parametrize("stall_seed", [None, 4], ids=["free", "stalls"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", RTL_CONFIGS)
def test_update_rtl(name, kind, stall_seed):
    """An update in the simulator: every beat as on the machine, masters as in the golden model."""
    config = CONFIGS[name]
    seed = OPTIMIZERS.index(kind) + 10 * (stall_seed is None)
    print(f"seed {seed}, configuration {config.digest}")
    rng = np.random.default_rng(seed)
    extremes, tensor_id = stall_seed is not None, 5 - (stall_seed is None)
    master = random_master(rng, (11, 6), tensor_id, extremes)
    gradient, scale = random_gradient(rng, (11, 6), config.acc_bits, extremes)
    if not extremes:
        gradient, scale = gradient.clip(-(1 << 20), 1 << 20), Scale(50000, -25)
    optimizer = make_optimizer(kind, 0.01, weight_decay=0.25)

    def update(device: CoreDevice, sticky: set[str], records: list[UpdateRecord]) -> Master:
        return run_sync(
            update_on_device(
                device, master, gradient, scale, optimizer, seed=seed, step=2, sticky=sticky,
                records=records,
            )
        )  # fmt: skip

    recorder = _Recorder(config)
    update(recorder, set(), [])
    outputs = run_program(config, recorder.program, core_verilog(config), stall_seed, cache=CACHE)
    assert_same_outputs(outputs, recorder.outputs)
    sticky: set[str] = set()
    records: list[UpdateRecord] = []
    expected_sticky: set[str] = set()
    expected = golden.update(
        master, gradient, scale, optimizer, seed=seed, step=2, sticky=expected_sticky
    )
    assert_same_master(update(_Replay(config, outputs), sticky, records), expected)
    assert sticky == expected_sticky
    cycles = records[0].cycles
    assert cycles is not None and cycles >= records[0].row_count


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("name", RTL_CONFIGS)
def test_more_updates_rtl(name, seed):
    """Extreme values and scales of any size, every rule, both layouts, shapes of several groups."""
    config = CONFIGS[name]
    print(f"seed {seed}, configuration {config.digest}")
    rng = np.random.default_rng(1000 + seed)
    shape = (int(rng.integers(1, 80)), int(rng.integers(1, 20)))
    master = random_master(rng, shape, seed % 2, extremes=True)
    gradient, scale = random_gradient(rng, shape, config.acc_bits, extremes=True)
    lr = 2.0 ** int(rng.integers(-12, 3))
    optimizer = make_optimizer(OPTIMIZERS[seed % 3], lr, weight_decay=seed % 4 / 10)
    recorder = _Recorder(config)
    expected, _ = both(config, master, gradient, scale, optimizer)
    got = run_sync(
        update_on_device(recorder, master, gradient, scale, optimizer, seed=-3, step=7)
    )  # fmt: skip
    assert_same_master(got, expected)
    stall_seed = None if seed % 3 == 0 else seed
    outputs = run_program(config, recorder.program, core_verilog(config), stall_seed, cache=CACHE)
    assert_same_outputs(outputs, recorder.outputs)


@pytest.mark.parametrize("cols", [6, 60], ids=["resident", "streamed"])
@pytest.mark.parametrize("name", RTL_CONFIGS)
def test_working_copy_rtl(name, cols):
    config = CONFIGS[name]
    master = random_master(np.random.default_rng(cols), (11, cols), 0, extremes=False)
    bits = config.result_bits
    recorder = _Recorder(config)
    run_sync(working_copy_on_device(recorder, master, bits))
    twice = sum(
        command.fields["opcode"] == Opcode.ROWS and command.fields["source"] == Source.STREAM
        for command in recorder.program.posts
    )
    assert twice >= (2 if cols == 60 else 1)
    outputs = run_program(config, recorder.program, core_verilog(config), 3, cache=CACHE)
    assert_same_outputs(outputs, recorder.outputs)
    got = run_sync(working_copy_on_device(_Replay(config, outputs), master, bits))
    expected = golden.working_copy(master, bits)
    np.testing.assert_array_equal(got.q, expected.q)
    assert got[1:] == expected[1:]


@pytest.mark.parametrize(
    ("name", "kind", "stall_seed"),
    [("tiny", "lion", None), ("tiny", "momentum", 5), ("4x8s2-int8", "sgd", 6)],
)
def test_steps_rtl(name, kind, stall_seed):
    """Two steps of two layers inside one simulation: as the golden model, with their cycles."""
    config = CONFIGS[name]
    state = training_state(kind, 23, bits={"x": 16, "lora_B": 16} if config.int16 else None)
    if stall_seed is not None:
        state = saturated(state)
    expected = run_steps(state, 2)
    set_bits = [layer.sticky for layer in expected.state.layers.values()]
    assert ["master_range" in bits for bits in set_bits] == [stall_seed is not None, False]
    result, records = run_training(state, 2, config, core_verilog(config), stall_seed, cache=CACHE)
    assert_same_run(result, expected)
    assert [(record.step, record.index) for record in records] == [(3, 0), (3, 1), (4, 0), (4, 1)]
    for record in records:
        parts = [*record.copies, *record.products, *record.updates]
        assert all(part.cycles is not None and part.cycles > 0 for part in parts)
        assert record.cycles == sum(part.cycles or 0 for part in parts)
        assert len(record.copies) == len(record.updates) == 2
