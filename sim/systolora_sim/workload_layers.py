"""What a workload is: the shapes of the adapted layers of one training step, without any data."""

import re
from dataclasses import dataclass
from typing import Any

from systolora_sim.numerics import K_LIMIT

__all__ = ["MAX_LAYERS", "StepMacs", "Workload", "WorkloadError", "WorkloadLayer", "check_size"]

#: So that a repeat count that is a slip of the pen ends in a message and not in a full memory.
MAX_LAYERS = 4096
#: Keys of an entry of `Workload.to_dict` that tell no shape.
_NAMING = ("name", "input", "count")
_NUMBERED = re.compile(r"(.+)\.\d+")


class WorkloadError(ValueError):
    """A workload that cannot be used; the message is one line."""


def check_size(name: str, value: object) -> int:
    """A size as it is, an integer from 1 to 131071; raises WorkloadError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise WorkloadError(f"{name}: {value!r}: must be an integer")
    if not 1 <= value < K_LIMIT:
        raise WorkloadError(f"{name}: {value}: must be from 1 to {K_LIMIT - 1}")
    return value


@dataclass(frozen=True, kw_only=True)
class WorkloadLayer:
    """The shapes of one adapted layer.

    Parameters
    ----------
    name : str
        Unique in its workload, not empty, without a slash.
    input : str
        Name of what it reads: layers with equal names read one and the same X.
    rows : int
        Rows of X for each sample: N is rows * batch.
    d, k : int
        Inputs and outputs: X is [N, d], the weight [k, d].
    dx : bool
        Whether the gradient with respect to X is computed.
    constant : bool
        Whether X does not change from step to step: what a frozen encoder makes of one prompt.

    Raises
    ------
    WorkloadError
        On a size outside 1 to 131071, a name that cannot be one, or a constant X with a dX.
    """

    name: str
    input: str
    rows: int
    d: int
    k: int
    dx: bool
    constant: bool = False

    def __post_init__(self) -> None:
        for key in ("name", "input"):
            value = getattr(self, key)
            if not isinstance(value, str) or not value or "/" in value:
                raise WorkloadError(f"{key}: {value!r}: must be a name without a slash")
        for key in ("rows", "d", "k"):
            check_size(key, getattr(self, key))
        if self.constant and self.dx:
            raise WorkloadError("constant: true: must be false with dx: what computes X is trained")

    def macs(self, rank: int, batch: int) -> dict[str, int]:
        """Multiplications of one training step, by product (numerics section 5)."""
        n, d, k = self.rows * batch, self.d, self.k
        macs = {
            "H": n * d * rank,
            "Y": n * d * k,
            "Y term": n * rank * k,
            "dH": n * k * rank,
            "dB": n * k * rank,
            "dA": n * d * rank,
        }
        if self.dx:
            macs |= {"dX": n * k * d, "dX term": n * rank * d}
        return macs


@dataclass(frozen=True)
class StepMacs:
    """Multiplications of the model's whole training step, of one sample and without adapters.

    Forward of every layer, and the backward products that lead a gradient to the adapted layers;
    no gradients of frozen weights. source : how they were counted.
    """

    macs: int
    source: str


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The adapted layers of one model.

    Parameters
    ----------
    name, title, source : str
        What it is called, what it is, and where its numbers come from.
    layers : tuple of WorkloadLayer
        In the order of the file; at most 4096.
    step : StepMacs or None
        The whole training step, where it is known.
    rank : int or None
        The adapters' rank, where the workload comes from a file of adapters.

    Raises
    ------
    WorkloadError
        If there is no layer or there are too many, two have the same name, or layers with one
        input disagree on its shape, or on whether it is constant.
    """

    name: str
    title: str
    source: str
    layers: tuple[WorkloadLayer, ...]
    step: StepMacs | None = None
    rank: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.layers) <= MAX_LAYERS:
            raise WorkloadError(f"{len(self.layers)} layers: must be from 1 to {MAX_LAYERS}")
        seen: set[str] = set()
        inputs: dict[str, WorkloadLayer] = {}
        for layer in self.layers:
            if layer.name in seen:
                raise WorkloadError(f"layer {layer.name}: name: two layers have it: must be unique")
            seen.add(layer.name)
            first = inputs.setdefault(layer.input, layer)
            for key in ("rows", "d", "constant"):
                wanted, value = getattr(first, key), getattr(layer, key)
                if value != wanted:
                    raise WorkloadError(
                        f"layer {layer.name}: {key}: {_word(value)}: must be {_word(wanted)} as in "
                        f"{first.name}, which has the same input {layer.input}"
                    )

    def to_dict(self) -> dict[str, Any]:
        """The workload as a report shows it: layers that only differ in their number are one.

        A run of layers `<stem>.<number>` of the same shapes gives one entry, named by the stem,
        with their `count`; its input is theirs if it is one, and its stem if they have one each.
        `constant` is there only where it is true.
        """
        entries: list[dict[str, Any]] = []
        for layer in self.layers:
            shapes = {"rows": layer.rows, "d": layer.d, "k": layer.k, "dx": layer.dx}
            if layer.constant:
                shapes["constant"] = True
            last = entries[-1] if entries else None
            if last is not None and _stem(last["name"]) == _stem(layer.name) != layer.name:
                same = {key: last[key] for key in last if key not in _NAMING} == shapes
                one = last["input"] in (layer.input, _stem(layer.input))
                own = last["count"] == 1 and _stem(last["input"]) == _stem(layer.input)
                if same and (one or own):
                    last["input"] = last["input"] if one else _stem(layer.input)
                    last["count"] += 1
                    continue
            entries.append({"name": layer.name, "input": layer.input, **shapes, "count": 1})
        for entry in entries:
            if entry["count"] > 1:
                entry["name"] = _stem(entry["name"])
        return {"name": self.name, "title": self.title, "source": self.source, "layers": entries}

    def step_share(self, rank: int, batch: int) -> dict[str, Any] | None:
        """The adapted layers' share of the whole step's multiplications, None if that is unknown.

        `step_speedup_bound` is how much faster the whole step gets at most if the adapted layers
        cost nothing and the rest stays as it is, in multiplications (Amdahl's law).
        """
        if self.step is None:
            return None
        products = [layer.macs(rank, batch) for layer in self.layers]
        adapted = sum(sum(macs.values()) for macs in products)
        low_rank = adapted - sum(macs["Y"] + macs.get("dX", 0) for macs in products)
        whole = self.step.macs * batch + low_rank
        return {
            "adapted_macs": adapted,
            "whole_macs": whole,
            "share": adapted / whole,
            "source": self.step.source,
            "step_speedup_bound": whole / max(whole - adapted, 1),
        }


def _word(value: int) -> str:
    """A value as a TOML file has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _stem(name: str) -> str:
    match = _NUMBERED.fullmatch(name)
    return match[1] if match else name
