"""A mapped unit behind four pins, to place and route what has more ports than a package has pins.

Inputs come from a chain of registers that one pin feeds; outputs go to registers, and a tree of
exclusive ors, with a register in every node, makes one pin of them. The harness is put around the
netlist: the unit's cells stay what they are, and no optimization sees both.

The harness has a clock of its own. So nextpnr's frequency of the unit's clock is that of the paths
within the unit, as where ports are left open; no path of the harness, nor one between the two, can
be the longest.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from systolora.synth.tools import SynthError

__all__ = ["CLOCK", "PREFIX", "Harness", "HarnessCells", "wrap"]

#: The unit's clock, and how everything in the harness that has a name begins.
CLOCK, PREFIX = "clk", "harness_"
#: Inputs of a node of the tree.
_NODE = 4


@dataclass(frozen=True)
class HarnessCells:
    """The cells that a family's harness is made of.

    Members
    -------
    register : type of a flip-flop without enable and reset, names of its clock, input, output
    luts : by number of inputs, 2 to 4: type of the LUT; its inputs are I0 to I3, one that it has
        too many is 0
    lut_output, lut_init : names of a LUT's output and of the parameter with its table
    constants : types of the cells that drive nets with 0 and 1, where there are such
    buffers : types of the buffers of an input and of an output pin (I, O), None where nextpnr
        makes them itself
    pins : nextpnr's names of the places of those buffers, by port: `clk`, `harness_clk`,
        `harness_in`, `harness_out`
    """

    register: tuple[str, str, str, str]
    luts: Mapping[int, str]
    lut_output: str
    lut_init: str
    constants: frozenset[str] = frozenset()
    buffers: tuple[str, str] | None = None
    pins: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Harness:
    """What is around a unit: bits in and out without the clock, and its own cells."""

    inputs: int
    outputs: int
    registers: int
    luts: int


class _Module:
    """Yosys' JSON of a module, and what is added to it."""

    def __init__(self, module: dict[str, Any], kinds: HarnessCells) -> None:
        self.module, self.kinds = module, kinds
        self.registers = self.luts = 0
        used = [port["bits"] for port in module["ports"].values()]
        used += [net["bits"] for net in module["netnames"].values()]
        used += [bits for c in module["cells"].values() for bits in c["connections"].values()]
        self._free = 1 + max(
            (bit for bits in used for bit in bits if isinstance(bit, int)), default=1
        )

    def net(self, name: str) -> int:
        """A new net of that name."""
        bit, self._free = self._free, self._free + 1
        self.module["netnames"][name] = {"hide_name": 0, "bits": [bit], "attributes": {}}
        return bit

    def cell(
        self,
        name: str,
        kind: str,
        inputs: Mapping[str, int | str],
        outputs: Mapping[str, int],
        parameters: Mapping[str, str] | None = None,
        place: str = "",
    ) -> None:
        """A new cell, where `place` says if it does."""
        self.module["cells"][name] = {
            "hide_name": 0,
            "type": kind,
            "parameters": dict(parameters or {}),
            "attributes": {"BEL": place} if place else {},
            "port_directions": dict.fromkeys(inputs, "input") | dict.fromkeys(outputs, "output"),
            "connections": {pin: [bit] for pin, bit in (*inputs.items(), *outputs.items())},
        }

    def register(self, name: str, clock: int, bit: int) -> int:
        """The net of a register's output."""
        kind, clock_pin, data, output = self.kinds.register
        new = self.net(name)
        self.cell(f"{name}_reg", kind, {clock_pin: clock, data: bit}, {output: new})
        self.registers += 1
        return new

    def parity(self, name: str, bits: Sequence[int]) -> int:
        """The net of the exclusive or of two to four nets."""
        kind = self.kinds.luts[len(bits)]
        width = max(n for n, other in self.kinds.luts.items() if other == kind)
        table = "".join(str(n.bit_count() % 2) for n in reversed(range(1 << width)))
        pins = {f"I{n}": bits[n] if n < len(bits) else "0" for n in range(width)}
        new = self.net(name)
        parameters = {self.kinds.lut_init: table}
        self.cell(f"{name}_lut", kind, pins, {self.kinds.lut_output: new}, parameters)
        self.luts += 1
        return new

    def input_pin(self, name: str, bit: int) -> None:
        """A port that drives the net, through a buffer if the family needs one."""
        if self.kinds.buffers is not None:
            place, name = self.kinds.pins[name], f"{PREFIX}pin_{name}"
            pin = self.net(name)
            self.cell(f"{name}_buffer", self.kinds.buffers[0], {"I": pin}, {"O": bit}, place=place)
            bit = pin
        self.module["ports"][name] = {"direction": "input", "bits": [bit]}

    def output_pin(self, name: str, bit: int) -> None:
        """A port that the net drives."""
        if self.kinds.buffers is not None:
            place, name = self.kinds.pins[name], f"{PREFIX}pin_{name}"
            pin = self.net(name)
            self.cell(f"{name}_buffer", self.kinds.buffers[1], {"I": bit}, {"O": pin}, place=place)
            bit = pin
        self.module["ports"][name] = {"direction": "output", "bits": [bit]}


def wrap(
    netlist: Mapping[str, Any], top: str, kinds: HarnessCells
) -> tuple[dict[str, Any], Harness]:
    """The netlist (Yosys' JSON) with a harness around the module `top`, and what the harness has.

    Its ports are then the unit's `clk`, if it has one, `harness_clk`, `harness_in` and
    `harness_out` (`harness_pin_` before them where pins have buffers). The bits of the unit's other
    inputs, in the order of its ports, lowest first, are a chain: the first takes `harness_in`, and
    an input takes its value with `harness_clk`. Outputs that are constant are left out, and a net
    is folded once, whatever number of outputs it has. What the outputs' registers take appears at
    `harness_out` a cycle per level of the tree later: logarithm to base 4 of the outputs, rounded
    up.

    Raises
    ------
    SynthError
        If the unit has no input beside its clock, no output that changes, one that is both, or a
        name that begins with `harness_`.
    """
    design = dict(netlist)
    design["modules"] = dict(netlist["modules"])
    design["modules"][top] = copy.deepcopy(netlist["modules"][top])
    unit = _Module(design["modules"][top], kinds)
    for name in (*unit.module["ports"], *unit.module["netnames"], *unit.module["cells"]):
        if name.startswith(PREFIX):
            raise SynthError(f"{top}: {name}: no name may begin with {PREFIX}")
    ports = unit.module["ports"]
    unit.module["ports"] = {}
    for name, port in ports.items():
        if port["direction"] == "inout":
            raise SynthError(f"{top}: {name}: a port in both directions has no place in a harness")
    inputs = [
        bit
        for name, port in ports.items()
        if port["direction"] == "input" and name != CLOCK
        for bit in port["bits"]
    ]
    constant = {
        bit
        for cell in unit.module["cells"].values()
        if cell["type"] in kinds.constants
        for bits in cell["connections"].values()
        for bit in bits
    }
    outputs = list(
        dict.fromkeys(
            bit
            for port in ports.values()
            if port["direction"] == "output"
            for bit in port["bits"]
            if isinstance(bit, int) and bit not in constant
        )
    )
    if not inputs or not outputs:
        raise SynthError(
            f"{top}: without inputs or outputs there is nothing to put a harness around"
        )
    if CLOCK in ports:
        unit.input_pin(CLOCK, ports[CLOCK]["bits"][0])
    clock = unit.net(f"{PREFIX}clk")
    unit.input_pin(f"{PREFIX}clk", clock)
    last = unit.net(f"{PREFIX}in")
    unit.input_pin(f"{PREFIX}in", last)
    for n, bit in enumerate(inputs):
        # The unit's own net becomes the register's output, under the name that it has
        kind, clock_pin, data, output = kinds.register
        unit.cell(f"{PREFIX}in_{n}_reg", kind, {clock_pin: clock, data: last}, {output: bit})
        unit.registers += 1
        last = bit
    level = [unit.register(f"{PREFIX}out_{n}", clock, bit) for n, bit in enumerate(outputs)]
    depth = 0
    while len(level) > 1:
        depth += 1
        groups = [level[n : n + _NODE] for n in range(0, len(level), _NODE)]
        level = []
        for n, group in enumerate(groups):
            name = f"{PREFIX}fold_{depth}_{n}"
            bit = unit.parity(f"{name}_xor", group) if len(group) > 1 else group[0]
            level.append(unit.register(name, clock, bit))
    unit.output_pin(f"{PREFIX}out", level[0])
    return design, Harness(len(inputs), len(outputs), unit.registers, unit.luts)
