"""What runs inside the simulator: one job, from its file to its outcome's file."""

import os
import time
from pathlib import Path
from typing import Any

import cocotb
from cocotb.triggers import FallingEdge

from systolora_sim.bench.device import RtlDevice, check_widths
from systolora_sim.bench.jobs import (
    load_job,
    save_layer_outcome,
    save_program_outcome,
    save_training_outcome,
)
from systolora_sim.compiler import compute_layer
from systolora_sim.device_training import DeviceBackend, TrainingJob
from systolora_sim.layer import Layer
from systolora_sim.training import train

__all__ = ["run_job"]


class _Progress:
    """Writes a count into a small file, a few times a second at most."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.next = 0.0

    def __call__(self, count: int) -> None:
        now = time.monotonic()
        if now >= self.next:
            self.next = now + 0.25
            self.path.write_text(str(count), encoding="ascii")


def _backend(device: RtlDevice) -> DeviceBackend:
    """The training backend of the Core in this simulation."""

    async def clear_sticky() -> None:
        clear, edge = device.dut.sticky_clear, FallingEdge(device.dut.clk)
        clear.value = 1
        await edge
        clear.value = 0
        await edge

    return DeviceBackend(device, clear_sticky)


@cocotb.test()
async def run_job(dut: Any) -> None:
    """Runs the job in SYSTOLORA_JOB; the error, if there is one, goes beside it."""
    job = Path(os.environ["SYSTOLORA_JOB"])
    try:
        config, work, stall_seed = load_job(job)
        check_widths(dut, config)
        device = RtlDevice(dut, config, stall_seed, _Progress(job.with_suffix(".progress")))
        await device.reset()
        out = job.with_suffix(".out")
        if isinstance(work, Layer):
            result, records = await compute_layer(device, work)
            await device.finish()
            save_layer_outcome(out, result, records)
        elif isinstance(work, TrainingJob):
            backend = _backend(device)
            result = await train(work.state, work.steps, backend)
            await device.finish()
            save_training_outcome(out, result, backend.records)
        else:
            device.load(work)
            outputs = await device.flush()
            await device.finish()
            save_program_outcome(out, outputs)
    except Exception as error:
        job.with_suffix(".error").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        raise
