"""Simulates a netlist of standard cells and counts how often each net changes.

64 independent runs at once, one in each bit of a word. Zero delay: a net changes at most once a
cycle, so glitches do not count. Unit delay: every cell takes one step, all changes of a cycle
count; real cells swallow short pulses, so that is more than there will be.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import CodeType

import numpy as np

from systolora.synth.functions import compiled, variables
from systolora.synth.liberty import Library
from systolora.synth.netlist import HIGH, Netlist
from systolora.synth.tools import SynthError

__all__ = ["LANES", "Activity", "simulate"]

#: Runs at once.
LANES = 64
_ONES = np.uint64(0xFFFFFFFFFFFFFFFF)
_MOST_STEPS = 1000


@dataclass(frozen=True)
class Activity:
    """What was counted over `cycles` cycles in all runs together.

    Members
    -------
    toggles, ones : of each net: changes, cycles at 1
    outputs : of each output port, [cycles simulated, 64]: its value at the end of each, unsigned
    """

    cycles: int
    toggles: np.ndarray
    ones: np.ndarray
    outputs: dict[str, np.ndarray]


@dataclass(frozen=True)
class _Group:
    """Cells with the same function: `out` = code(`inputs`)."""

    code: CodeType
    inputs: list[np.ndarray]
    out: np.ndarray

    def evaluate(self, nets: np.ndarray) -> np.ndarray:
        return eval(self.code, {"x": [nets[i] for i in self.inputs], "ones": _ONES})


class _Circuit:
    """The netlist as groups by level, and registers as groups of states."""

    def __init__(self, netlist: Netlist, library: Library, clock: str) -> None:
        self._codes: dict[tuple[str, tuple[str, ...]], CodeType] = {}
        self.size = len(netlist.names)
        self.clocks = set(netlist.ports.get(clock, ("", []))[1])
        gates: list[tuple[str, tuple[str, ...], list[int], int]] = []
        states: list[tuple[str, tuple[str, ...], list[int], int, int]] = []
        for cell in netlist.cells:
            kind = library.cells[cell.kind]
            register = kind.register
            if kind.flip_flop and register is None:
                raise SynthError(f"{cell.kind}: a kind of flip-flop that is not simulated")
            if register is not None:
                if cell.pins.get(register.clock) not in self.clocks:
                    raise SynthError(
                        f"{netlist.top}: {cell.name}: must be clocked by the rising edge of {clock}"
                    )
                function = f"({register.next_state})"
                if register.clear:
                    function = f"({function} & !({register.clear}))"
                if register.preset:
                    function = f"({function} | ({register.preset}))"
                pins = variables(function)
                state = self.size
                self.size += 1
                states.append((function, pins, [cell.pins[p] for p in pins], state, 0))
                held = {register.state: "X", register.inverse: "!X"}
            for pin, text in kind.functions.items():
                if pin not in cell.pins:
                    continue
                if register is not None:
                    gates.append((held[text.strip("() ")], ("X",), [state], cell.pins[pin]))
                else:
                    pins = variables(text)
                    gates.append((text, pins, [cell.pins[p] for p in pins], cell.pins[pin]))
        self.levels = self._by_level(gates, netlist)
        self.everything = self._groups(gates)
        self.states = self._groups([entry[:4] for entry in states])

    def _groups(self, gates) -> list[_Group]:
        kinds: dict[tuple[str, tuple[str, ...]], tuple[list[list[int]], list[int]]] = {}
        for text, pins, inputs, out in gates:
            rows = kinds.setdefault((text, pins), ([], []))
            rows[0].append(inputs)
            rows[1].append(out)
        groups = []
        for key, (inputs, out) in kinds.items():
            if key not in self._codes:
                self._codes[key] = compiled(*key)
            table = np.array(inputs, np.int64).reshape(len(out), len(key[1]))
            columns = [np.ascontiguousarray(column) for column in table.T]
            groups.append(_Group(self._codes[key], columns, np.array(out)))
        return groups

    def _by_level(self, gates, netlist: Netlist) -> list[list[_Group]]:
        level = np.full(self.size, -1)
        driven = {gate[3] for gate in gates}
        level[[net for net in range(self.size) if net not in driven]] = 0
        waiting: dict[int, list[int]] = {}
        missing = [len({net for net in gate[2] if net in driven}) for gate in gates]
        for number, gate in enumerate(gates):
            for net in set(gate[2]):
                if net in driven:
                    waiting.setdefault(net, []).append(number)
        ready = [number for number, count in enumerate(missing) if not count]
        found: dict[int, list] = {}
        done = 0
        while ready:
            number = ready.pop()
            gate = gates[number]
            depth = 1 + max((int(level[net]) for net in gate[2]), default=0)
            level[gate[3]] = depth
            found.setdefault(depth, []).append(gate)
            done += 1
            for user in waiting.get(gate[3], ()):
                missing[user] -= 1
                if not missing[user]:
                    ready.append(user)
        if done != len(gates):
            raise SynthError(f"{netlist.top}: a loop of cells, which is not simulated")
        return [self._groups(found[depth]) for depth in sorted(found)]


def _packed(values: np.ndarray, bits: int) -> np.ndarray:
    """[cycles, 64] integers to [cycles, bits] words, one run in each bit."""
    planes = (values[:, None, :] >> np.arange(bits)[:, None]) & 1
    return np.packbits(planes.astype(np.uint8), axis=-1, bitorder="little").view("<u8")[..., 0]


def simulate(
    netlist: Netlist,
    library: Library,
    inputs: Mapping[str, np.ndarray],
    *,
    skip: int,
    unit_delay: bool = False,
    clock: str = "clk",
) -> Activity:
    """Applies `inputs` and counts from cycle `skip` on.

    Parameters
    ----------
    inputs : of each input port, [cycles, 64] integers, in the cycle before the edge that takes
        them; ports without any are 0, registers begin with 0
    unit_delay : count glitches, see above

    Raises
    ------
    SynthError
        If an input is no port, a cell or a clock is of a kind that is not simulated, or the circuit
        does not settle.
    """
    circuit = _Circuit(netlist, library, clock)
    cycles = len(next(iter(inputs.values())))
    applied = []
    for name, values in inputs.items():
        direction, nets = netlist.ports.get(name, ("", []))
        if direction != "input":
            raise SynthError(f"{netlist.top}: no input {name}")
        applied.append((np.array(nets), _packed(np.asarray(values, np.int64), len(nets))))
    outputs = {n: np.array(p[1]) for n, p in netlist.ports.items() if p[0] == "output"}
    seen = {name: np.zeros((cycles, len(nets)), np.uint64) for name, nets in outputs.items()}
    nets = np.zeros(circuit.size, np.uint64)
    nets[HIGH] = _ONES
    toggles = np.zeros(circuit.size, np.int64)
    ones = np.zeros(circuit.size, np.int64)
    for group in (group for level in circuit.levels for group in level):
        nets[group.out] = group.evaluate(nets)
    for cycle in range(cycles):
        before = nets.copy()
        held = [group.evaluate(nets) for group in circuit.states]
        for group, value in zip(circuit.states, held, strict=True):
            nets[group.out] = value
        for numbers, words in applied:
            nets[numbers] = words[cycle]
        if unit_delay:
            toggled = _settle(circuit, before, nets)
        else:
            for level in circuit.levels:
                for group in level:
                    nets[group.out] = group.evaluate(nets)
            toggled = np.bitwise_count(nets ^ before)
        if cycle >= skip:
            toggles += toggled
            ones += np.bitwise_count(nets)
        for name, numbers in outputs.items():
            seen[name][cycle] = nets[numbers]
    counted = max(cycles - skip, 0)
    kept = slice(0, len(netlist.names))
    return Activity(
        LANES * counted, toggles[kept], ones[kept], {n: _unpacked(w) for n, w in seen.items()}
    )


def _settle(circuit: _Circuit, before: np.ndarray, nets: np.ndarray) -> np.ndarray:
    """All cells at once, step by step, until nothing changes; the changes of each net."""
    toggled = np.bitwise_count(nets ^ before).astype(np.int64)
    for _ in range(_MOST_STEPS):
        values = [group.evaluate(nets) for group in circuit.everything]
        changed = False
        for group, value in zip(circuit.everything, values, strict=True):
            difference = nets[group.out] ^ value
            if difference.any():
                changed = True
                toggled[group.out] += np.bitwise_count(difference)
                nets[group.out] = value
        if not changed:
            return toggled
    raise SynthError("the netlist does not settle")


def _unpacked(words: np.ndarray) -> np.ndarray:
    """[cycles, bits] words to [cycles, 64] unsigned integers."""
    bits = np.unpackbits(
        np.ascontiguousarray(words).astype("<u8").view(np.uint8).reshape(*words.shape, 8),
        axis=-1, bitorder="little",
    )  # fmt: skip
    weights = np.int64(1) << np.arange(words.shape[1], dtype=np.int64)
    return (bits.astype(np.int64) * weights[:, None]).sum(axis=1)
