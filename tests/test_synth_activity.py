"""Netlists that are simulated: functions of Liberty files, counts by hand, SAIF."""

import itertools

import numpy as np
import pytest

from systolora.synth.activity import LANES, simulate
from systolora.synth.functions import compiled, variables
from systolora.synth.netlist import Instance, Netlist
from systolora.synth.saif import read_saif, saif_text
from systolora.synth.tools import SynthError
from tiny_library import tiny_library

FUNCTIONS = {
    "(A * B) + !C": lambda a, b, c: a & b | 1 - c,
    "A B' + C": lambda a, b, c: a & 1 - b | c,
    "!((A+B)*C)": lambda a, b, c: 1 - ((a | b) & c),
    "A ^ B & C": lambda a, b, c: (a ^ b) & c,
    "(A^B)'|C&1": lambda a, b, c: 1 - (a ^ b) | c,
}


@pytest.mark.parametrize("text", FUNCTIONS)
def test_functions(text):
    code = compiled(text, "ABC")
    assert set(variables(text)) == set("ABC")
    for values in itertools.product((0, 1), repeat=3):
        words = [np.array([v * 0xFFFFFFFFFFFFFFFF], np.uint64) for v in values]
        found = eval(code, {"x": words, "ones": np.uint64(0xFFFFFFFFFFFFFFFF)})
        assert found[0] == FUNCTIONS[text](*values) * 0xFFFFFFFFFFFFFFFF


@pytest.mark.parametrize("text", ["A + D", "(A", "A)", "A %", "A +", ""])
def test_what_is_no_function(text):
    with pytest.raises(SynthError, match="function"):
        compiled(text, "ABC")


def counter(extra: list[Instance] = []) -> Netlist:  # noqa: B006
    """A flip-flop that turns over, its output and an input through an AND."""
    return Netlist(
        "t",
        ["0", "1", "clk", "a", "q", "n", "y[0]"],
        {"clk": ("input", [2]), "a": ("input", [3]), "y": ("output", [6])},
        [
            Instance("f", "DFF", {"C": 2, "D": 5, "Q": 4}),
            Instance("i", "INV", {"A": 4, "Y": 5}),
            Instance("g", "AND2", {"A": 3, "B": 4, "Y": 6}),
            *extra,
        ],
    )


def one(values: list[int]) -> np.ndarray:
    """The same in every run but the last, which has zeros."""
    stream = np.repeat(np.array(values)[:, None], LANES, axis=1)
    stream[:, -1] = 0
    return stream


def test_counts_by_hand(tmp_path):
    library = tiny_library(tmp_path)
    found = simulate(counter(), library, {"a": one([1, 1, 0, 0, 1, 1])}, skip=0)
    # q: 1 0 1 0 1 0 after the edges, y: 1 0 0 0 1 0; before the first cycle all are 0
    assert found.outputs["y"][:, 0].tolist() == [1, 0, 0, 0, 1, 0]
    assert found.outputs["y"][:, -1].tolist() == [0] * 6
    runs = LANES - 1
    assert found.cycles == 6 * LANES
    assert found.toggles.tolist() == [0, 0, 0, 3 * runs, 6 * LANES, 6 * LANES, 4 * runs]
    assert found.ones.tolist()[3:] == [4 * runs, 3 * LANES, 3 * LANES, 2 * runs]
    # From the third cycle on
    later = simulate(counter(), library, {"a": one([1, 1, 0, 0, 1, 1])}, skip=2)
    assert later.toggles.tolist()[3:] == [2 * runs, 4 * LANES, 4 * LANES, 2 * runs]


def test_saif(tmp_path):
    found = simulate(counter(), tiny_library(tmp_path), {"a": one([1, 1, 0, 0, 1, 1])}, skip=0)
    file = tmp_path / "t.saif"
    file.write_text(saif_text(counter(), found), encoding="utf-8")
    text = file.read_text(encoding="utf-8")
    runs = LANES - 1
    assert f"(DURATION {6 * LANES})" in text
    assert rf"(y\[0\] (T0 {6 * LANES - 2 * runs}) (T1 {2 * runs}) (TX 0) (TC {4 * runs})" in text
    nets = read_saif(file)
    assert nets.keys() == {"clk", "a", "q", "n", "y[0]"}
    assert nets["y[0]"].toggles == pytest.approx(4 * runs / 6 / LANES)
    assert nets["q"].ones == 0.5
    for content, words in (("x", "not a SAIF file"), ("(SAIFILE (DURATION 5))", "no net")):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(SynthError, match=words):
            read_saif(file)
    with pytest.raises(SynthError, match="No such file"):
        read_saif(tmp_path / "none")


def test_glitches_by_hand(tmp_path):
    """a and not a, one cell later: a pulse for each change of `a` that only unit delay sees."""
    library = tiny_library(tmp_path)
    netlist = Netlist(
        "t", ["0", "1", "a", "n", "y"], {"a": ("input", [2]), "y": ("output", [4])},
        [Instance("i", "INV", {"A": 2, "Y": 3}), Instance("x", "AND2", {"A": 2, "B": 3, "Y": 4})],
    )  # fmt: skip
    inputs = {"a": one([1, 0, 1, 0])}
    assert simulate(netlist, library, inputs, skip=0).toggles[4] == 0
    found = simulate(netlist, library, inputs, skip=0, unit_delay=True)
    # Two rises of a, each with a pulse of two changes
    assert found.toggles.tolist()[2:] == [4 * (LANES - 1), 4 * (LANES - 1), 4 * (LANES - 1)]
    assert not found.outputs["y"].any()


def test_what_is_not_simulated(tmp_path):
    library = tiny_library(tmp_path)
    inputs = {"a": one([1])}
    loop = [Instance("l", "INV", {"A": 7, "Y": 8}), Instance("m", "INV", {"A": 8, "Y": 7})]
    netlist = counter(loop)
    netlist.names.extend(["l", "m"])
    with pytest.raises(SynthError, match="a loop of cells"):
        simulate(netlist, library, inputs, skip=0)
    with pytest.raises(SynthError, match="f: must be clocked by the rising edge of clock"):
        simulate(counter(), library, inputs, skip=0, clock="clock")
    with pytest.raises(SynthError, match="no input b"):
        simulate(counter(), library, {"b": one([1])}, skip=0)
