"""Product files: safetensors with the operands of one bare product.

Metadata `product` is "nt", "nn" or "tn" and says how `a` and `b` lie (`systolora_sim.product`).
Both are int8 or int16 with `<name>.scale`, or floats, as in a layer file. Optional: `c` int32 or
int64 [M,N], sums that are added, with `c.scale`, which must be S_a * S_b; `bias` int32 [N] in the
same units; `seed` and `step` int32 [1]; `q.amax` int64 [1], the record of a delayed q.

Metadata, all optional but `product`: `delayed` and `stochastic`, "q" or nothing; `bits`, "8" or
"16", the width of float tensors (default 8); `bits.a`, `bits.b`, `bits.q`, the width of one tensor.

The output holds `c`, the sums, and `q` = Q(c), each with its scale, `q.amax` where it is delayed,
and metadata `sticky`. It is written by `layerfile.write_result`.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from systolora_sim import layerfile
from systolora_sim.layer import LayerError
from systolora_sim.layerfile import LayerFileError, Reader
from systolora_sim.product import KINDS, Product

__all__ = ["is_product", "load_product", "write_product"]

_OPERANDS = ("a", "b")
_KNOWN = frozenset(
    [*_OPERANDS, "a.scale", "b.scale", "c", "c.scale", "bias", "seed", "step", "q.amax"]
)
_WIDTHS = ("a", "b", "q")


def is_product(path: str | Path) -> bool:
    """Whether a file's header is that of a product rather than of a layer.

    Says no to a file that cannot be read: whoever reads it says why.
    """
    names, metadata = layerfile.read_header(path)
    return "product" in metadata or (set(_OPERANDS) <= names and "x" not in names)


def _product(name: str, content: bytes) -> Product:
    reader = Reader(*layerfile.parse(content), _KNOWN)
    if "product" not in reader.metadata:
        raise LayerError(f"metadata product: missing: must be one of {', '.join(KINDS)}")
    kind = reader.choice("product", KINDS, "")
    widths = reader.widths(_WIDTHS)
    default = int(reader.choice("bits", ("8", "16"), "8"))
    operands, scales = {}, {}
    for tensor, axes in Product.AXES[kind].items():
        operands[tensor], scales[tensor] = reader.operand(tensor, widths.get(tensor), default, axes)
    product = Product(
        name=name,
        kind=kind,
        **operands,
        scales=scales,
        c=reader.take("c", ("I32", "I64")).array() if "c" in reader.tensors else None,
        bias=reader.take("bias", ("I32",)).array() if "bias" in reader.tensors else None,
        delayed=bool(reader.names("delayed", ("q",))),
        stochastic=bool(reader.names("stochastic", ("q",))),
        bits=widths.get("q"),
        amax=reader.number("q.amax", ("I64",)) if "q.amax" in reader.tensors else 0,
        seed=reader.counter("seed"),
        step=reader.counter("step"),
    )
    if "c.scale" in reader.tensors:
        found, wanted = reader.scale("c.scale"), product.acc_scale
        if product.c is None:
            raise LayerError("c.scale: there is no c")
        if found != wanted:
            raise LayerError(f"c.scale: {list(found)}: must be {list(wanted)}, a's scale times b's")
    return product


def load_product(path: str | Path) -> Product:
    """The product of a file, checked and, where its operands are floats, quantized.

    Its name is the file's without the ending.

    Raises
    ------
    LayerFileError
        If the file cannot be read, is not safetensors, or breaks a rule of this module or of
        `Product`.
    """
    content = layerfile.read_bytes(path)
    try:
        return _product(Path(path).stem, content)
    except LayerError as error:
        raise LayerFileError(f"{path}: {error}") from None


def write_product(
    path: str | Path, product: Product, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a product file of integers that `load_product` reads back as the same product.

    `metadata` adds keys of the caller's own.

    Raises
    ------
    LayerFileError
        If the file cannot be written; no part of it is left behind.
    """
    records = {"q": product.amax} if product.delayed and product.amax else {}
    operands = {name: getattr(product, name) for name in _OPERANDS}
    tensors = layerfile.with_scales(operands, product.scales, records)
    if product.c is not None:
        tensors |= layerfile.with_scales({"c": product.c}, {"c": product.acc_scale}, {})
    if product.bias is not None:
        tensors["bias"] = product.bias
    for name in ("seed", "step"):
        tensors[name] = np.array([getattr(product, name)], np.int32)
    layerfile.save_tensors(
        path,
        tensors,
        {
            **(metadata or {}),
            "product": product.kind,
            "delayed": "q" if product.delayed else "",
            "stochastic": "q" if product.stochastic else "",
            **({} if product.bits is None else {"bits.q": str(product.bits)}),
        },
    )
