"""Runs compiled programs on the simulated Verilog of the whole accelerator."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from systolora.config import AcceleratorConfig
from systolora.contract import Dataflow, Fault, Kind
from systolora_sim import runner
from systolora_sim.descriptor import decode
from systolora_sim.layer import ADAPTERS, LayerResult
from systolora_sim.memory_map import Symbol
from systolora_sim.runner import RunError
from systolora_sim.step_program import LayerStructure, StepProgram, read_back
from systolora_sim.training import TrainingResult

if TYPE_CHECKING:
    from systolora_sim.bench.build import Simulator
    from systolora_sim.bench.script import Command
    from systolora_sim.bench.system import SystemResult

__all__ = ["IMAGE_BASE", "RtlOptions", "check_results", "ideal_cycles", "mismatches"]
__all__ += ["run_and_check", "run_on_rtl", "simulator"]

#: Where images lie: beyond what 32 bits address.
IMAGE_BASE = 1 << 32

#: Cycles in a waveform of a mismatch, before and after the last write of the wrong element: enough
#: for a product's last tiles, their way through the post-processor and to memory.
BEFORE, AFTER = 2000, 50
_CYCLE = re.compile(r"last written in cycle (\d+)")

#: Bytes whose last write the harness records together.
_WRITE_WORD = 64

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class RtlOptions:
    """How a simulation runs; none of it changes the results.

    Parameters
    ----------
    stall_seed : seed of random stalls on every part of all buses, None for none
    memory_latency : cycles from a read's address to its data, and from a write's data to its answer
    trace : a waveform to write, .fst or .vcd; None for none
    trace_window : first cycle in the waveform and the first after it, from the reset; None for all;
        "mismatch": only if a result is wrong, in a second run: what happened around its last write
    check : compare with the golden model, element by element
    """

    stall_seed: int | None = None
    memory_latency: int = 40
    trace: Path | None = None
    trace_window: tuple[int, int] | Literal["mismatch"] | None = None
    check: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.memory_latency <= 1 << 20:
            raise RunError(f"memory latency = {self.memory_latency}: must be from 1 to {1 << 20}")
        if self.trace_window is None:
            return
        if self.trace is None:
            raise RunError("a trace window without a trace")
        if self.trace_window == "mismatch":
            if not self.check:
                raise RunError("a trace of a mismatch without a check")
            return
        first, limit = self.trace_window
        if not 0 <= first < limit < 1 << 63:
            raise RunError(f"trace window = {first}:{limit}: must be FIRST:LIMIT, increasing")


def ideal_cycles(program: StepProgram) -> int:
    """Cycles in which the array takes a streamed beat, in one run of a program."""
    cycles = 0
    for descriptor in program.program:
        if descriptor[0] & 0xF != Kind.EXEC:
            continue
        _, fields = decode(descriptor.tobytes())
        passes = (1 + fields["act_wide"]) * (1 + fields["wgt_wide"])
        beats = fields["length"] * fields["repeat"] * passes
        # A tile whose sums stay in the PEs still has to be filled and drained.
        cycles += beats if fields["dataflow"] == Dataflow.WS else beats + fields["repeat"]
    return cycles


def simulator(config: AcceleratorConfig, build_dir: Path, trace: Path | None) -> "Simulator":
    """The simulator of a configuration, generated and built unless it is there; raises RunError."""
    with runner.bench_errors():
        from systolora_sim.bench.system_build import build_system, trace_format

        suffix = None if trace is None else trace_format(trace)
        verilog = runner.ensure_verilog(config, build_dir)
        return build_system(verilog.file, build_dir / "sim", channels=config.channels, trace=suffix)


def run_on_rtl(
    program: StepProgram,
    runs: int,
    options: RtlOptions,
    build_dir: Path,
    progress: bool = True,
    watch: "Sequence[Command]" = (),
) -> "SystemResult":
    """Runs a program some times over, on its own image, in one simulation.

    Parameters
    ----------
    program : its base a multiple of 4096
    runs : how often, at least 1
    options : how the simulation runs
    build_dir : where Verilog and simulators are kept, and found again
    progress : whether stderr shows a progress bar
    watch : commands that read registers meanwhile (`bench.system.SystemJob`)

    Raises
    ------
    RunError
        If the simulator cannot be built, the simulation fails, or the program ends with a fault.
    """
    if options.trace is not None:
        runner.check_output(options.trace, [])
    window = options.trace_window
    file = None if window == "mismatch" else options.trace
    built = simulator(program.config, build_dir, file)
    with runner.bench_errors():
        from systolora_sim.bench.script import MemoryModel, Trace
        from systolora_sim.bench.system import SystemJob, run_system

        trace = None
        if file is not None and window != "mismatch":
            trace = Trace(file, *(window or (0, None)))
        latency = options.memory_latency
        job = SystemJob(
            image=program.memory(),
            base=program.base,
            program_address=program.address,
            length=program.length,
            read_window=program.read_window,
            write_window=program.write_window,
            runs=runs,
            word_base=program.word_base,
            step=program.step,
            memory=MemoryModel(latency, latency, stall_seed=options.stall_seed),
            # Nothing moves on the bus while the array works on what it has.
            watchdog=100 * latency + 1_000_000,
            trace=trace,
            watch=watch,
        )
        with runner.bar(runs * ideal_cycles(program), progress, " cycles") as update:
            result = run_system(built, program.config, job, update)
    if result.fault is not Fault.NONE:
        raise RunError(f"the program ended with {result.fault.name} at descriptor {result.index}")
    return result


# Comparison with the golden model -----------------------------------------------------------------


def mismatches(
    program: StepProgram,
    result: "SystemResult",
    steps: int,
    expected: TrainingResult | LayerResult,
) -> list[str]:
    """What runs left in memory against the golden results, all of it: a sentence per tensor.

    Each names the first element that differs, what it must be, where it lies and in which cycle it
    was written last.
    """
    got = read_back(program, result.image, steps)
    wrong: list[str] = []
    for name, one, other in _pairs(program, got, expected):
        if steps > 1 and name.endswith("results.sticky"):
            continue  # of all steps; the golden results have those of the last one
        if one.shape != other.shape:
            wrong.append(f"{name}: shape {one.shape}: must be {other.shape}")
            continue
        differs = np.argwhere(one != other)
        if len(differs):
            index = tuple(int(i) for i in differs[0])
            message = _describe(program, result, name, index, one[index], other[index])
            more = f"; {len(differs)} elements differ" if len(differs) > 1 else ""
            wrong.append(message + more)
    return wrong


def run_and_check(
    program: StepProgram,
    runs: int,
    options: RtlOptions,
    build_dir: Path,
    progress: bool,
    golden: Callable[[], TrainingResult | LayerResult],
) -> "SystemResult":
    """`run_on_rtl`, and the comparison with the golden results if the options ask for it.

    Raises
    ------
    RunError
        As `run_on_rtl`, and with the first of `mismatches`, if there are any; of them a waveform is
        written where the options ask for it.
    """
    result = run_on_rtl(program, runs, options, build_dir, progress)
    if not options.check:
        return result
    wrong = mismatches(program, result, runs, golden())
    if not wrong:
        return result
    message = _not_golden(wrong)
    found = _CYCLE.search(wrong[0])
    if options.trace_window == "mismatch" and found is not None:
        cycle = int(found[1])
        window = max(cycle - BEFORE, 0), cycle + AFTER
        again = replace(options, trace_window=window, check=False)
        run_on_rtl(program, runs, again, build_dir, progress)
        message += f"; cycles {window[0]} to {window[1] - 1} are in {options.trace}"
    raise RunError(message)


def check_results(
    program: StepProgram,
    result: "SystemResult",
    steps: int,
    expected: TrainingResult | LayerResult,
) -> None:
    """Raises RunError with the first of `mismatches`, if there are any."""
    if wrong := mismatches(program, result, steps, expected):
        raise RunError(_not_golden(wrong))


def _not_golden(wrong: list[str]) -> str:
    more = f"; {len(wrong)} tensors differ" if len(wrong) > 1 else ""
    return f"not as the golden model: {wrong[0]}{more}"


def _describe(
    program: StepProgram,
    result: "SystemResult",
    name: str,
    index: tuple[int, ...],
    got: Any,
    expected: Any,
) -> str:
    symbol = program.symbols[name]
    address = _address(symbol, index)
    cycle = int(result.last_writes[(address - program.base) // _WRITE_WORD])
    when = f"last written in cycle {cycle}" if cycle else "never written"
    where = ", ".join(map(str, index))
    return f"{name}[{where}] = {got}: must be {expected} (at {address:#x}, {when})"


def _address(symbol: Symbol, index: tuple[int, ...]) -> int:
    """Where an element lies of the tensor as files hold it."""
    if len(index) == 1:
        return symbol.at(0, index[0])
    row, col = reversed(index) if symbol.transposed else index
    return symbol.at(row, col)


def _pairs(
    program: StepProgram, got: TrainingResult | LayerResult, expected: TrainingResult | LayerResult
) -> Iterator[tuple[str, Array, Array]]:
    """Names of symbols with their contents, got and expected, in the order of computation."""
    structure = program.structure
    if isinstance(got, LayerResult) and isinstance(expected, LayerResult):
        yield from _result_pairs(structure.layers[0], got, expected)
        return
    assert isinstance(got, TrainingResult) and isinstance(expected, TrainingResult)
    for layer in structure.layers:
        yield from _result_pairs(layer, got.results[layer.name], expected.results[layer.name])
    for layer in structure.layers:
        one, other = (each.state.layers[layer.name] for each in (got, expected))
        for adapter, held, golden in zip(ADAPTERS, (one.a, one.b), (other.a, other.b), strict=True):
            name = layer.symbol(f"{adapter}.master")
            yield name, held.w, golden.w
            yield f"{name}.scale", np.array(held.scale), np.array(golden.scale)
            if held.v is not None and golden.v is not None:
                name = layer.symbol(f"{adapter}.momentum")
                yield name, held.v, golden.v
                yield f"{name}.scale", np.array(held.v_scale), np.array(golden.v_scale)
        yield layer.symbol("sticky"), _bits(one.sticky), _bits(other.sticky)


def _result_pairs(
    layer: LayerStructure, got: LayerResult, expected: LayerResult
) -> Iterator[tuple[str, Array, Array]]:
    for tensor in layer.results:
        name = layer.symbol(tensor)
        yield name, got.tensors[tensor], expected.tensors[tensor]
        yield f"{name}.scale", np.array(got.scales[tensor]), np.array(expected.scales[tensor])
    for tensor, record in got.amax.items():
        yield layer.symbol(f"{tensor}.amax"), np.array([record]), np.array([expected.amax[tensor]])
    yield layer.symbol("results.sticky"), _bits(got.sticky), _bits(expected.sticky)


def _bits(names: Any) -> Array:
    """Sticky bits by name as the text that a message shows."""
    return np.array([", ".join(sorted(names)) or "none"])
