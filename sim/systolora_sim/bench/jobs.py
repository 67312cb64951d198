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
from systolora_sim.device_training import LayerStepRecord, TrainingJob
from systolora_sim.golden import Master, Optimizer
from systolora_sim.layer import INPUTS, Layer, LayerResult
from systolora_sim.numerics import Scale
from systolora_sim.program import Outputs, PostCommand, Program, TileCommand
from systolora_sim.training import LayerState, TrainingResult, TrainingState

__all__ = ["layer_outcome", "load_job", "program_outcome", "save_job", "save_layer_outcome"]
__all__ += ["save_program_outcome", "save_training_outcome", "training_outcome"]

#: What the simulator can run.
Work = Layer | Program | TrainingJob

_FIELDS = ("name", "want_dx", "bits", "amax", "seed", "step", "index")


def _write(path: Path, arrays: dict[str, Any], info: dict[str, Any]) -> None:
    with path.open("wb") as file:
        np.savez(file, json=np.array(json.dumps(info)), **arrays)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return arrays, json.loads(str(arrays.pop("json")))


def save_job(path: Path, config: AcceleratorConfig, work: Work, stall_seed: int | None) -> None:
    """Writes what the simulator is to run."""
    info: dict[str, Any] = {"config": config.to_dict(), "stall_seed": stall_seed}
    arrays: dict[str, Any] = {}
    if isinstance(work, Layer):
        info["layer"] = _layer_fields(work, arrays, "")
    elif isinstance(work, TrainingJob):
        info["training"] = {"state": _state_fields(work.state, arrays), "steps": work.steps}
    else:
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


def load_job(path: Path) -> tuple[AcceleratorConfig, Work, int | None]:
    """The inverse of `save_job`."""
    arrays, info = _read(path)
    config = AcceleratorConfig(**info["config"])
    if "layer" in info:
        return config, _layer(info["layer"], arrays, ""), info["stall_seed"]
    if "training" in info:
        training = info["training"]
        job = TrainingJob(state=_state(training["state"], arrays), steps=training["steps"])
        return config, job, info["stall_seed"]
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


# Layers and states: what is not an array goes into the text, arrays get the prefix --------------


def _layer_fields(layer: Layer, arrays: dict[str, Any], prefix: str) -> dict[str, Any]:
    """A layer's fields for the text; its tensors go into `arrays`."""
    for name in (*INPUTS, *(["bias"] if layer.bias is not None else [])):
        arrays[prefix + name] = getattr(layer, name)
    return {name: getattr(layer, name) for name in _FIELDS} | {
        "scales": layer.scales,
        "gain": layer.gain,
        "delayed": sorted(layer.delayed),
        "stochastic": sorted(layer.stochastic),
    }


def _layer(fields: dict[str, Any], arrays: dict[str, Any], prefix: str) -> Layer:
    """The inverse of `_layer_fields`."""
    fields = dict(fields)
    fields["scales"] = {name: Scale(*scale) for name, scale in fields["scales"].items()}
    fields["gain"] = Scale(*fields["gain"])
    for name in ("delayed", "stochastic"):
        fields[name] = frozenset(fields[name])
    tensors = {name: arrays[prefix + name] for name in INPUTS}
    return Layer(**tensors, bias=arrays.get(f"{prefix}bias"), **fields)


def _master_fields(master: Master, arrays: dict[str, Any], prefix: str) -> dict[str, Any]:
    arrays[f"{prefix}w"] = master.w
    if master.v is not None:
        arrays[f"{prefix}v"] = master.v
    return {"scale": master.scale, "tensor_id": master.tensor_id, "v_scale": master.v_scale}


def _master(fields: dict[str, Any], arrays: dict[str, Any], prefix: str) -> Master:
    v_scale = fields["v_scale"]
    return Master(
        w=arrays[f"{prefix}w"],
        scale=Scale(*fields["scale"]),
        tensor_id=fields["tensor_id"],
        v=arrays.get(f"{prefix}v"),
        v_scale=None if v_scale is None else Scale(*v_scale),
    )


def _state_fields(state: TrainingState, arrays: dict[str, Any]) -> dict[str, Any]:
    """A training state's fields for the text; layers are numbered in their order."""
    layers = []
    for number, (name, layer) in enumerate(state.layers.items()):
        prefix = f"{number}."
        layers.append(
            {
                "name": name,
                "layer": _layer_fields(layer.layer, arrays, prefix),
                "a": _master_fields(layer.a, arrays, f"{prefix}a."),
                "b": _master_fields(layer.b, arrays, f"{prefix}b."),
                "sticky": sorted(layer.sticky),
            }
        )
    optimizer = asdict(state.optimizer)
    return {"layers": layers, "optimizer": optimizer, "seed": state.seed, "step": state.step}


def _state(fields: dict[str, Any], arrays: dict[str, Any]) -> TrainingState:
    """The inverse of `_state_fields`."""
    layers = {}
    for number, layer in enumerate(fields["layers"]):
        prefix = f"{number}."
        layers[layer["name"]] = LayerState(
            layer=_layer(layer["layer"], arrays, prefix),
            a=_master(layer["a"], arrays, f"{prefix}a."),
            b=_master(layer["b"], arrays, f"{prefix}b."),
            sticky=frozenset(layer["sticky"]),
        )
    factors = dict(fields["optimizer"])
    kind = factors.pop("kind")
    optimizer = Optimizer(kind=kind, **{name: Scale(*scale) for name, scale in factors.items()})
    return TrainingState(
        layers=layers,
        optimizer=optimizer,
        seed=fields["seed"],
        step=fields["step"],
    )


# What comes back --------------------------------------------------------------------------------


def _result_fields(result: LayerResult, arrays: dict[str, Any], prefix: str) -> dict[str, Any]:
    arrays.update({prefix + name: tensor for name, tensor in result.tensors.items()})
    return {
        "tensors": list(result.tensors),
        "scales": result.scales,
        "amax": result.amax,
        "sticky": sorted(result.sticky),
    }


def _result(fields: dict[str, Any], arrays: dict[str, Any], prefix: str) -> LayerResult:
    return LayerResult(
        tensors={name: arrays[prefix + name] for name in fields["tensors"]},
        scales={name: Scale(*scale) for name, scale in fields["scales"].items()},
        amax=fields["amax"],
        sticky=set(fields["sticky"]),
    )


def save_layer_outcome(path: Path, result: LayerResult, records: list[ProductRecord]) -> None:
    """Writes what a layer's simulation gave."""
    arrays: dict[str, Any] = {}
    info = {
        "result": _result_fields(result, arrays, ""),
        "records": [asdict(record) for record in records],
    }
    _write(path, arrays, info)


def layer_outcome(path: Path) -> tuple[LayerResult, list[ProductRecord]]:
    """The inverse of `save_layer_outcome`."""
    arrays, info = _read(path)
    records = [ProductRecord(**record) for record in info["records"]]
    return _result(info["result"], arrays, ""), records


def save_training_outcome(
    path: Path, result: TrainingResult, records: list[LayerStepRecord]
) -> None:
    """Writes what a training run's simulation gave."""
    arrays: dict[str, Any] = {}
    info = {
        "state": _state_fields(result.state, arrays),
        "results": {
            name: _result_fields(each, arrays, f"result{number}.")
            for number, (name, each) in enumerate(result.results.items())
        },
        "records": [record.to_dict() for record in records],
    }
    _write(path, arrays, info)


def training_outcome(path: Path) -> tuple[TrainingResult, list[LayerStepRecord]]:
    """The inverse of `save_training_outcome`."""
    arrays, info = _read(path)
    results = {
        name: _result(fields, arrays, f"result{number}.")
        for number, (name, fields) in enumerate(info["results"].items())
    }
    result = TrainingResult(state=_state(info["state"], arrays), results=results)
    return result, [LayerStepRecord.from_dict(record) for record in info["records"]]


def save_program_outcome(path: Path, outputs: Outputs) -> None:
    """Writes what a program's simulation gave."""
    info = {"info": outputs.info, "cycles": outputs.cycles, "sticky": outputs.sticky}
    _write(path, {"result": outputs.result, "acc_out": outputs.acc_out}, info)


def program_outcome(path: Path) -> Outputs:
    """The inverse of `save_program_outcome`."""
    arrays, info = _read(path)
    return Outputs(**arrays, **info)
