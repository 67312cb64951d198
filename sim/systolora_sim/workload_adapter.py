"""Workloads from files of adapters: the shapes of their layers, from the header alone.

What a file does not tell follows from the layers' names, of which only the last words count, with
dots or kohya's underscores between them:

- `attn2.to_k`, `attn2.to_v`, and `encoder_attn.k_proj`, `.v_proj` read the text or what another
  encoder made of it: all of the same width share one input, which is not trained: no dX, and
  constant.
- `to_q`, `to_k`, `to_v` of another attention share its input, and so do `q_proj`, `k_proj`,
  `v_proj`; `query`, `key`, `value`; `add_q_proj`, `add_k_proj`, `add_v_proj`; `gate_proj`,
  `up_proj`.
- Every other layer has an input of its own. All these have a dX.
"""

import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from systolora_sim.adapter_names import parse_name, why_not
from systolora_sim.layer import ADAPTERS
from systolora_sim.workload_layers import Workload, WorkloadError, WorkloadLayer, check_size

__all__ = ["from_adapter"]

_CONTEXT = re.compile(r"(?:.*[._])?(?:attn2[._]to_[kv]|encoder_attn[._][kv]_proj)")
_CROSS_QUERY = re.compile(r"(?:.*[._])?(?:attn2[._]to_q|encoder_attn[._]q_proj)")
#: What the layers that share an input end with; the first that fits counts.
_SHARED = {
    "added": re.compile(r"(.*)[._]add_[qkv]_proj"),
    "to_qkv": re.compile(r"(.*)[._]to_[qkv]"),
    "qkv_proj": re.compile(r"(.*)[._][qkv]_proj"),
    "query_key_value": re.compile(r"(.*)[._](?:query|key|value)"),
    "gate_up": re.compile(r"(.*)[._](?:gate|up)_proj"),
}
#: The rows of these are the text's as well: joint attention's text side.
_TEXT_SIDE = re.compile(r"(?:.*[._])?(?:add_[qkv]_proj|to_add_out)")

_Shape = tuple[int, ...]


def _shapes(path: Path) -> dict[str, _Shape]:
    """Each tensor's shape."""
    try:
        with open(path, "rb"), safe_open(path, "numpy") as file:
            names = file.keys()
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except SafetensorError as error:
        reason = " ".join(str(error).split())
        raise WorkloadError(f"not a complete safetensors file: {reason}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise WorkloadError(f"cannot be read: {getattr(error, 'strerror', error)}") from None


def _matrix(name: str, shape: _Shape) -> tuple[int, int]:
    """Rows and columns of lora_A or lora_B; a convolution of 1 x 1 is a linear layer."""
    if len(shape) == 4 and shape[2:] != (1, 1):
        raise WorkloadError(
            f"{name}: shape {list(shape)}: belongs to a convolution: must be the adapter of a "
            "linear layer"
        )
    if len(shape) not in (2, 4) or 0 in shape:
        raise WorkloadError(f"{name}: shape {list(shape)}: must be 2-D, and no size 0")
    return shape[0], shape[1]


def _sizes(held: dict[str, tuple[str, _Shape]]) -> tuple[int, int, int]:
    """d, k and r of a layer from its tensors by role."""
    for role in ADAPTERS:
        if role not in held:
            name = next(iter(held.values()))[0]
            raise WorkloadError(f"{name}: {role} of its layer is missing")
    (rank, d), (k, columns) = (_matrix(*held[role]) for role in ADAPTERS)
    if columns != rank:
        a, (b, shape) = held["lora_A"][0], held["lora_B"]
        raise WorkloadError(
            f"{b}: shape {list(shape)}: must be [k, r] with r = {rank} as in {a}"
        )  # fmt: skip
    return d, k, rank


def _input(layer: str, d: int) -> str:
    """The name of what a layer reads."""
    if _CONTEXT.fullmatch(layer):
        return f"context:{d}"
    if not _CROSS_QUERY.fullmatch(layer):
        for kind, pattern in _SHARED.items():
            if match := pattern.fullmatch(layer):
                return f"{match[1]}:{kind}"
    return layer


def _workload(path: Path, rows: int, text_rows: int) -> Workload:
    layers: dict[str, dict[str, tuple[str, _Shape]]] = {}
    shapes = _shapes(path)
    for name in sorted(shapes):
        part = parse_name(name)
        if part is None:
            if parse_name(name.removesuffix(".scale")) is not None:
                continue  # the Scale of a master
            raise WorkloadError(f"{name}: {why_not(name)}")
        other, _ = layers.setdefault(part.layer, {}).setdefault(part.role, (name, shapes[name]))
        if other != name:
            raise WorkloadError(f"{name}: {other} is {part.role} of the same layer: must be one")
    made, ranks = [], {}
    for layer, held in layers.items():
        d, k, rank = _sizes(held)
        ranks.setdefault(rank, held["lora_A"][0])
        context = _CONTEXT.fullmatch(layer) is not None
        text = context or _TEXT_SIDE.fullmatch(layer) is not None
        try:
            made.append(
                WorkloadLayer(
                    name=layer,
                    input=_input(layer, d),
                    rows=text_rows if text else rows,
                    d=d,
                    k=k,
                    dx=not context,
                    constant=context,
                )
            )
        except WorkloadError as error:
            raise WorkloadError(f"{held['lora_A'][0]}: {error}") from None
    if len(ranks) > 1:
        found = ", ".join(f"{rank} ({ranks[rank]})" for rank in sorted(ranks))
        raise WorkloadError(f"ranks {found}: must be one for all layers")
    return Workload(
        name=path.stem,
        title=f"adapters of {path.name}",
        source=f"{path.name}: shapes of lora_A and lora_B; rows, inputs and dX by rule",
        layers=tuple(made),
        rank=next(iter(ranks), None),
    )


def from_adapter(path: str | Path, rows: int, text_rows: int | None = None) -> Workload:
    """The layers of a file of adapters with the names of PEFT, diffusers or kohya's scripts.

    Reads the file's header only. Which layers share an input, and which have a dX, follows from
    their names (see the module).

    Parameters
    ----------
    path : safetensors
    rows : rows of X for each sample, 1 to 131071, of all layers: no file tells them
    text_rows : rows of what reads the text: `attn2.to_k`, `encoder_attn.k_proj` and alike, and
        joint attention's `add_q_proj`, `to_add_out`; None: as the others

    Raises
    ------
    WorkloadError
        If rows cannot be that, the file cannot be read, it has a tensor that is none of a linear
        layer's adapter, or its layers have several ranks; naming the file, the tensor, the rule.
    """
    check_size("rows", rows)
    text = rows if text_rows is None else check_size("text_rows", text_rows)
    path = Path(path)
    try:
        return _workload(path, rows, text)
    except WorkloadError as error:
        raise WorkloadError(f"{path}: {error}") from None
