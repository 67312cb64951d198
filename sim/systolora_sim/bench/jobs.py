"""Files between the process that asks for a simulation and the simulator's process.

A job is a NumPy archive of integer arrays with one JSON text; so is what comes back.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from systolora.config import AcceleratorConfig
from systolora_sim.program import Outputs, PostCommand, Program, TileCommand

__all__ = ["load_job", "load_outcome", "save_job", "save_outcome"]


def _write(path: Path, arrays: dict[str, Any], info: dict[str, Any]) -> None:
    with path.open("wb") as file:
        np.savez(file, json=np.array(json.dumps(info)), **arrays)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return arrays, json.loads(str(arrays.pop("json")))


def save_job(
    path: Path, config: AcceleratorConfig, program: Program, stall_seed: int | None
) -> None:
    """Writes what the simulator is to run."""
    arrays: dict[str, Any] = {}
    for number, tile in enumerate(program.tiles):
        arrays[f"act{number}"], arrays[f"wgt{number}"] = tile.act, tile.wgt
    for number, post in enumerate(program.posts):
        arrays[f"acc{number}"] = post.acc_in
    info = {
        "config": config.to_dict(),
        "stall_seed": stall_seed,
        "tiles": [_plain(tile.fields) for tile in program.tiles],
        "posts": [_plain(post.fields) for post in program.posts],
    }
    _write(path, arrays, info)


def _plain(fields: dict[str, int]) -> dict[str, int]:
    return {name: int(value) for name, value in fields.items()}


def load_job(path: Path) -> tuple[AcceleratorConfig, Program, int | None]:
    """The inverse of `save_job`."""
    arrays, info = _read(path)
    program = Program(
        [
            TileCommand(fields, arrays[f"act{number}"], arrays[f"wgt{number}"])
            for number, fields in enumerate(info["tiles"])
        ],
        [
            PostCommand(fields, arrays[f"acc{number}"])
            for number, fields in enumerate(info["posts"])
        ],
    )
    return AcceleratorConfig(**info["config"]), program, info["stall_seed"]


def save_outcome(path: Path, outputs: Outputs) -> None:
    """Writes what a program's simulation gave."""
    info = {"info": outputs.info, "cycles": outputs.cycles, "sticky": outputs.sticky}
    _write(path, {"result": outputs.result, "acc_out": outputs.acc_out}, info)


def load_outcome(path: Path) -> Outputs:
    """The inverse of `save_outcome`."""
    arrays, info = _read(path)
    return Outputs(**arrays, **info)
