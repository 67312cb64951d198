"""Files between the process that asks for a simulation and the simulator's process.

A job is a NumPy archive of integer arrays with one JSON text; so is what comes back.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from systolora.config import AcceleratorConfig
from systolora_sim.compiler import ProductRecord
from systolora_sim.layer import INPUTS, Layer, LayerResult
from systolora_sim.numerics import Scale
from systolora_sim.program import Outputs, PostCommand, Program, TileCommand

__all__ = ["layer_outcome", "load_job", "program_outcome", "save_job", "save_layer_outcome"]
__all__ += ["save_program_outcome"]

_FIELDS = ("name", "want_dx", "bits", "amax", "seed", "step", "index")


def _write(path: Path, arrays: dict[str, Any], info: dict[str, Any]) -> None:
    with path.open("wb") as file:
        np.savez(file, json=np.array(json.dumps(info)), **arrays)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return arrays, json.loads(str(arrays.pop("json")))


def save_job(
    path: Path, config: AcceleratorConfig, work: Layer | Program, stall_seed: int | None
) -> None:
    """Writes what the simulator is to run."""
    info: dict[str, Any] = {"config": config.to_dict(), "stall_seed": stall_seed}
    if isinstance(work, Layer):
        arrays = {name: getattr(work, name) for name in INPUTS}
        if work.bias is not None:
            arrays["bias"] = work.bias
        info["layer"] = {name: getattr(work, name) for name in _FIELDS} | {
            "scales": work.scales,
            "gain": work.gain,
            "delayed": sorted(work.delayed),
            "stochastic": sorted(work.stochastic),
        }
    else:
        arrays = {}
        for number, tile in enumerate(work.tiles):
            arrays[f"act{number}"], arrays[f"wgt{number}"] = tile.act, tile.wgt
        for number, post in enumerate(work.posts):
            arrays[f"acc{number}"] = post.acc_in
        info["program"] = {
            "tiles": [_plain(tile.fields) for tile in work.tiles],
            "posts": [_plain(post.fields) for post in work.posts],
        }
    _write(path, arrays, info)


def _plain(fields: dict[str, int]) -> dict[str, int]:
    return {name: int(value) for name, value in fields.items()}


def load_job(path: Path) -> tuple[AcceleratorConfig, Layer | Program, int | None]:
    """The inverse of `save_job`."""
    arrays, info = _read(path)
    config = AcceleratorConfig(**info["config"])
    if "layer" in info:
        fields = info["layer"]
        fields["scales"] = {name: Scale(*scale) for name, scale in fields["scales"].items()}
        fields["gain"] = Scale(*fields["gain"])
        for name in ("delayed", "stochastic"):
            fields[name] = frozenset(fields[name])
        return config, Layer(**arrays, **fields), info["stall_seed"]
    program = info["program"]
    work = Program(
        [
            TileCommand(fields, arrays[f"act{number}"], arrays[f"wgt{number}"])
            for number, fields in enumerate(program["tiles"])
        ],
        [
            PostCommand(fields, arrays[f"acc{number}"])
            for number, fields in enumerate(program["posts"])
        ],
    )
    return config, work, info["stall_seed"]


def save_layer_outcome(path: Path, result: LayerResult, records: list[ProductRecord]) -> None:
    """Writes what a layer's simulation gave."""
    info = {
        "scales": result.scales,
        "amax": result.amax,
        "sticky": sorted(result.sticky),
        "records": [asdict(record) for record in records],
    }
    _write(path, dict(result.tensors), info)


def layer_outcome(path: Path) -> tuple[LayerResult, list[ProductRecord]]:
    """The inverse of `save_layer_outcome`."""
    arrays, info = _read(path)
    result = LayerResult(
        tensors=arrays,
        scales={name: Scale(*scale) for name, scale in info["scales"].items()},
        amax=info["amax"],
        sticky=set(info["sticky"]),
    )
    return result, [ProductRecord(**record) for record in info["records"]]


def save_program_outcome(path: Path, outputs: Outputs) -> None:
    """Writes what a program's simulation gave."""
    info = {"info": outputs.info, "cycles": outputs.cycles, "sticky": outputs.sticky}
    _write(path, {"result": outputs.result, "acc_out": outputs.acc_out}, info)


def program_outcome(path: Path) -> Outputs:
    """The inverse of `save_program_outcome`."""
    arrays, info = _read(path)
    return Outputs(**arrays, **info)
