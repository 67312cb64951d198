"""What runs inside the simulator of the Core: one program, from its file to its outcome's file."""

import os
from pathlib import Path
from typing import Any

import cocotb

from systolora_sim.bench.device import RtlDevice, check_widths
from systolora_sim.bench.jobs import load_job, save_outcome

__all__ = ["run_job"]


@cocotb.test()
async def run_job(dut: Any) -> None:
    """Runs the job in SYSTOLORA_JOB; the error, if there is one, goes beside it."""
    job = Path(os.environ["SYSTOLORA_JOB"])
    try:
        config, program, stall_seed = load_job(job)
        check_widths(dut, config)
        device = RtlDevice(dut, config, stall_seed)
        await device.reset()
        device.load(program)
        outputs = await device.flush()
        await device.finish()
        save_outcome(job.with_suffix(".out"), outputs)
    except Exception as error:
        job.with_suffix(".error").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        raise
