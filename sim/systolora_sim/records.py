"""Records of layer calls: what a call was given, as a file that `systolora run` takes, and results.

A call has two files: `<number>-<layer>.safetensors`, a layer file (`layerfile`) or, where an
update belongs to the call, a file for training (`statefile`) of one step; and beside it
`<number>-<layer>.result.safetensors`, the very bytes that `systolora run` writes for it. The
results are written first, so that a record that is there is complete.
"""

from pathlib import Path

from systolora_sim import layerfile
from systolora_sim.layer import ADAPTERS, Layer, LayerResult
from systolora_sim.statefile import held_tensors, shared_tensors, write_training
from systolora_sim.training import TrainingResult, TrainingState

__all__ = ["RESULT", "result_path", "write_call", "write_step"]

#: How the name of a file of results ends.
RESULT = ".result.safetensors"


def result_path(record: Path) -> Path:
    """Where the results of a record are."""
    return record.with_name(record.name.removesuffix(".safetensors") + RESULT)


def _record_path(directory: Path, number: int, name: str) -> Path:
    return directory / f"{number:08}-{name.replace('/', '_')}.safetensors"


def write_call(directory: Path, number: int, layer: Layer, result: LayerResult) -> Path:
    """Records a call without an update; returns the record's path.

    Raises
    ------
    LayerFileError
        If a file cannot be written.
    """
    path = _record_path(directory, number, layer.name)
    layerfile.write_result(result_path(path), result)
    layerfile.write_layer(path, layer, {"layer": layer.name})
    return path


def write_step(directory: Path, number: int, before: TrainingState, result: TrainingResult) -> Path:
    """Records a step of one layer, named "" in both; returns the record's path.

    Raises
    ------
    LayerFileError
        If a file cannot be written.
    """
    (state,) = before.layers.values()
    path = _record_path(directory, number, state.layer.name)
    write_training(result_path(path), result)
    tensors, metadata = layerfile.layer_content(state.layer, without=ADAPTERS)
    # Working copies come from the masters; of lora_A and lora_B only the widths count.
    widths = {f"bits.{name}": str(state.layer.bits_of(name)) for name in ADAPTERS}
    held, scales = held_tensors(state)
    tensors |= layerfile.with_scales(held, scales, {})
    tensors |= shared_tensors(before.optimizer, before.seed, before.step)
    more = {"layer": state.layer.name, "optimizer": before.optimizer.kind}
    layerfile.save_tensors(path, tensors, {**metadata, **widths, **more})
    return path
