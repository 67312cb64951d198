"""What is different between two results of a layer."""

import numpy as np

from systolora_sim.layer import LayerResult

__all__ = ["differences"]


def differences(result: LayerResult, golden: LayerResult) -> dict[str, str]:
    """What is different, by tensor (or `sticky`, `amax`): empty where all bits are the same."""
    found = {}
    for name in golden.tensors.keys() | result.tensors.keys():
        if name not in golden.tensors or name not in result.tensors:
            found[name] = "is missing"
            continue
        have, want = result.tensors[name], golden.tensors[name]
        if have.dtype != want.dtype or have.shape != want.shape:
            found[name] = f"{have.dtype} {have.shape}, not {want.dtype} {want.shape}"
        elif not np.array_equal(have, want):
            where = tuple(int(i) for i in np.argwhere(have != want)[0])
            count = int((have != want).sum())
            found[name] = (
                f"{count} elements differ, first at {where}: {have[where]}, not {want[where]}"
            )
        elif result.scales.get(name) != golden.scales.get(name):
            found[name] = f"scale {result.scales.get(name)}, not {golden.scales.get(name)}"
    for name in ("amax", "sticky"):
        if getattr(result, name) != getattr(golden, name):
            found[name] = f"{getattr(result, name)}, not {getattr(golden, name)}"
    return found
