"""Placing a component: a real submodule, or an `Instance` of a module that is emitted once.

Amaranth emits every submodule instance anew; an array of 4096 PEs would take minutes and tens of
megabytes. `emit.EmitOnce` is the platform that turns placements into Instances; without it (in
simulation) the component is an ordinary submodule. That both give the same circuit is proven by
Yosys in the tests.
"""

from typing import Any

from amaranth.hdl import Module, ResetInserter, Value
from amaranth.lib import wiring

__all__ = ["place"]


def place(
    m: Module,
    platform: Any,
    name: str,
    component: wiring.Component,
    *,
    reset: Value | None = None,
) -> wiring.Component:
    """Adds `component` to `m` as the submodule `name`; its ports are used the same either way.

    reset : resets the component, and all inside it, beside the reset of the domain
    """
    if hasattr(platform, "place"):
        m.submodules[name] = platform.place(component, reset)
    elif reset is not None:
        m.submodules[name] = ResetInserter(reset)(component)
    else:
        m.submodules[name] = component
    return component
