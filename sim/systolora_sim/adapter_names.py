"""Names of an adapter's tensors in the ecosystem's files, read and written.

======================  =================================================  =====================
scheme                  tensors                                            layer
======================  =================================================  =====================
peft                    ``base_model.model.<path>.lora_A.weight``          ``<path>``
                        ``base_model.model.<path>.lora_A.<adapter>.weight``
diffusers               ``<path>.lora_A.weight``                           ``<path>``
                        ``<path>.lora.down.weight``
                        ``<path>.lora_linear_layer.down.weight``
                        ``<block>.processor.to_k_lora.down.weight``        ``<block>.to_k``
kohya                   ``<module>.lora_down.weight``, ``<module>.alpha``  ``<module>``
======================  =================================================  =====================

and alike with ``lora_B`` and ``up``. diffusers' paths begin with the model's part (``unet.``,
``text_encoder.``), and kohya's modules name it (``lora_unet_``, ``lora_te_``) before a path whose
dots have become underscores. The layer keeps all of that; between schemes it is translated.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

__all__ = ["ROLES", "SCHEMES", "Part", "layer_names", "parse_name", "why_not"]

SCHEMES = ("peft", "diffusers", "kohya")
#: What a tensor is of its layer.
ROLES = ("lora_A", "lora_B", "alpha")

_PEFT_PREFIX = "base_model.model."
_WHICH = {"A": "lora_A", "B": "lora_B", "down": "lora_A", "up": "lora_B"}
_PEFT = re.compile(r"(.+)\.lora_([AB])(?:\.[^.]+)?\.weight")
_KOHYA = re.compile(r"(.+)\.lora_(down|up)\.weight")
_ALPHA = re.compile(r"(.+)\.alpha")
_DIFFUSERS = re.compile(r"(.+)\.(?:lora|lora_linear_layer)\.(down|up)\.weight")
_PROCESSOR = re.compile(r"(.+?)(?:\.processor)?\.([^.]+)_lora\.(down|up)\.weight")

#: Endings of tensors that other kinds of adapters have.
_OTHERS = {
    "lora_magnitude_vector": "DoRA",
    "lora_magnitude_vector.weight": "DoRA",
    "dora_scale": "DoRA",
    "lora_mid.weight": "a Tucker decomposition",
    "lora_B.bias": "a bias of lora_B",
    "hada_w1_a": "LoHa",
    "lokr_w1": "LoKr",
}

#: Parts of a model, by diffusers' name: kohya's. A file with two text encoders numbers the first.
_COMPONENTS = {
    "unet": "unet",
    "transformer": "transformer",
    "text_encoder": "te",
    "text_encoder_2": "te2",
    "text_encoder_3": "te3",
}
_KOHYA_COMPONENTS = {short: name for name, short in _COMPONENTS.items()} | {"te1": "text_encoder"}
_KOHYA_MODULE = re.compile(rf"lora_({'|'.join(sorted(_KOHYA_COMPONENTS, reverse=True))})_(.+)")

#: Names of modules in diffusers and CLIP models; the list exists for those with underscores.
# fmt: off
_WORDS = (
    "add_k_proj", "add_q_proj", "add_v_proj", "attentions", "attn", "attn1", "attn2", "conv",
    "conv1", "conv2", "conv_in", "conv_out", "conv_shortcut", "down_blocks", "downsamplers",
    "encoder", "fc1", "fc2", "ff", "ff_context", "k_proj", "layers", "linear", "linear_1",
    "linear_2", "mid_block", "mlp", "net", "out_proj", "proj", "proj_in", "proj_mlp", "proj_out",
    "q_proj", "resnets", "self_attn", "single_transformer_blocks", "text_model", "text_projection",
    "time_emb_proj", "time_embedding", "to_add_out", "to_k", "to_out", "to_q", "to_v",
    "transformer_blocks", "up_blocks", "upsamplers", "v_proj",
)
# fmt: on
_WORD = re.compile(rf"(?:{'|'.join(sorted(_WORDS, key=len, reverse=True))}|\d+)(?:_|$)")


class Part(NamedTuple):
    """What a tensor's name says: scheme, layer and role (`ROLES`)."""

    scheme: str
    layer: str
    role: str


def parse_name(name: str) -> Part | None:
    """The parts of a name, None if no scheme has such names."""
    if match := _PEFT.fullmatch(name):
        path, role = match[1], _WHICH[match[2]]
        if path.startswith(_PEFT_PREFIX):
            return Part("peft", path.removeprefix(_PEFT_PREFIX), role)
        return Part("diffusers", path, role)
    if match := _KOHYA.fullmatch(name):
        return Part("kohya", match[1], _WHICH[match[2]])
    if match := _DIFFUSERS.fullmatch(name):
        return Part("diffusers", match[1], _WHICH[match[2]])
    if match := _PROCESSOR.fullmatch(name):
        # The processor's to_out is the first of the module list that today's attention has.
        projection = "to_out.0" if match[2] == "to_out" else match[2]
        return Part("diffusers", f"{match[1]}.{projection}", _WHICH[match[3]])
    if match := _ALPHA.fullmatch(name):
        return Part("kohya", match[1], "alpha")
    return None


def why_not(name: str) -> str:
    """Why a name that is none of an adapter's cannot be taken, as the end of a sentence."""
    for ending, kind in _OTHERS.items():
        if name.endswith(f".{ending}"):
            return f"belongs to {kind}: must be a plain LoRA adapter"
    if ".lora_embedding_" in name:
        return "belongs to an embedding: must be the adapter of a linear layer"
    return "unknown tensor: no name of a LoRA adapter"


def _dotted(underscored: str) -> str:
    """A path whose dots have become underscores, by the known names of modules.

    Raises
    ------
    ValueError
        If it has a word that is not known.
    """
    words, place = [], 0
    while place < len(underscored):
        match = _WORD.match(underscored, place)
        if match is None:
            raise ValueError(
                f"{underscored}: cannot tell dots from underscores at {underscored[place:]!r}: "
                "kohya's names keep only underscores"
            )
        words.append(match[0].removesuffix("_"))
        place = match.end()
    return ".".join(words)


def _path(layer: str) -> tuple[str, str]:
    """(part of the model or "", dotted path) of a layer of any scheme; raises ValueError."""
    if match := _KOHYA_MODULE.fullmatch(layer):
        return _KOHYA_COMPONENTS[match[1]], _dotted(match[2])
    component, dot, path = layer.partition(".")
    if dot and component in _COMPONENTS:
        return component, path
    return "", layer


def layer_names(
    layers: Iterable[str], scheme: str, known: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """Names of each layer's tensors in a scheme, by layer and role; alpha has one in kohya's only.

    Parameters
    ----------
    layers : str
        The layers of one file.
    scheme : str
        One of `SCHEMES`.
    known : dict
        Names that are to be used again, by ``<layer>/<role>``.

    Raises
    ------
    ValueError
        If a layer has no name in that scheme, or two tensors would have the same.
    """
    layers = list(layers)
    fresh = [layer for layer in layers if f"{layer}/lora_A" not in known]
    if "" in fresh:
        raise ValueError(f"the layer has no name: {scheme} needs one, as <layer>/lora_A")
    places = {}
    for layer in fresh:
        # A module of kohya's needs no translation, known words or not.
        same = scheme == "kohya" and _KOHYA_MODULE.fullmatch(layer)
        places[layer] = ("", layer) if same else _path(layer)
    parts = {part for part, _ in places.values()}
    if scheme == "peft" and len(parts) > 1:
        found = ", ".join(sorted(part or "(none)" for part in parts))
        raise ValueError(f"parts of the model {found}: a file of PEFT is of one")
    second = any(layer.startswith(("text_encoder_2.", "lora_te2_")) for layer in layers)
    names: dict[str, dict[str, str]] = {}
    for layer in layers:
        kept = {role: known[f"{layer}/{role}"] for role in ROLES if f"{layer}/{role}" in known}
        if layer not in places:
            names[layer] = kept
            if scheme == "kohya":
                module = kept["lora_A"].removesuffix(".lora_down.weight")
                names[layer].setdefault("alpha", f"{module}.alpha")
            continue
        part, path = places[layer]
        if scheme == "kohya":
            short = "te1" if second and part == "text_encoder" else _COMPONENTS[part or "unet"]
            made = path.startswith("lora_") and _KOHYA_MODULE.fullmatch(path)
            module = path if made else f"lora_{short}_{path.replace('.', '_')}"
            endings = {"lora_A": "lora_down.weight", "lora_B": "lora_up.weight", "alpha": "alpha"}
        else:
            module = f"{_PEFT_PREFIX}{path}" if scheme == "peft" else f"{part or 'unet'}.{path}"
            endings = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}
        names[layer] = {role: f"{module}.{ending}" for role, ending in endings.items()}
    counts = Counter(name for each in names.values() for name in each.values())
    for name, count in counts.items():
        if count > 1:
            raise ValueError(f"{name}: {count} layers would have this name")
    return names
