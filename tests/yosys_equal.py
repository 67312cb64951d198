"""Proofs of equivalence with Yosys and ABC, in a process of their own (`python yosys_equal.py`).

Two designs or modules become a miter, the miter an and-inverter graph, and ABC's `dprove` decides
it by sequential equivalence checking; where registers are matched by name, `&fraig`. Registers
without a power-up value start at 0 on both sides; an x in the first design is 0, an x in the second
is any value, so the second may only leave open what nobody can see.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from yosys_products import SLICE, Shapes, cut_products
from yosys_registers import cut_registers

#: What goes before dprove, one after the other until it decides, and for how many seconds. Signals
#: that correspond, also inside multipliers of one structure, quick where it works at all; then
#: registers alone, harder: dprove gives up on the first hard pair, and then on all that rest on it.
FIRST = {"scorr": 20, "lcorr -C 100000": 300}
SEQUENTIAL = {
    f"read_aiger miter.aig; strash; scleanup; {first}; dprove": seconds
    for first, seconds in FIRST.items()
}
#: Without registers: random values, because a product that differs makes what follows slow; then
#: all pairs of signals, each until it is decided. The few hard ones in wide multipliers, upper
#: carries that cannot be, take seconds, and all that rests on them nothing.
COMBINATIONAL = {
    "read_aiger miter.aig; sim -F 1 -W 1000": 20,
    "&r miter.aig; &fraig -x; &cec -m": 600,
}


def prove_designs(
    first: Path, second: Path, top: str, products: str = "whole", registers: str = "found"
) -> str:
    """'equal', 'different' or 'undecided': two whole designs, flattened. Files: .il or .v.

    `products`: "cut" cuts multipliers out of both (`yosys_products.py`), "sliced" cuts those of
    the first into slices of 3 bits that stay multipliers, "whole" leaves them as they are.
    `registers`: "named" matches them by name (`yosys_registers.py`), so that what differs in states
    that are never reached is 'different' too; "found" leaves it to ABC.
    """
    return _run("designs", first, second, top, products, registers)["design"]


def prove_modules(rtlil: Path, verilog: Path, top: str, modules: list[str]) -> dict[str, str]:
    """The same verdict for each module, with the modules that it instantiates as black boxes.

    `modules` are all modules of both designs, parents before children.
    """
    return _run("modules", rtlil, verilog, top, *modules)


def _run(kind: str, first: Path, second: Path, top: str, *modules: str) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer.json"
        command = [sys.executable, __file__, kind, str(first), str(second), top, str(answer)]
        command += modules
        run = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
        assert run.returncode == 0, (run.stdout + run.stderr)[-3000:]
        return json.loads(answer.read_text())


def _main(kind: str, first: str, second: str, top: str, answer: str, *modules: str) -> None:
    import pyosys
    from pyosys import libyosys

    products, registers = modules if kind == "designs" else ("whole", "found")

    design = libyosys.Design()
    abc = Path(pyosys.__file__).parent / "yosys-abc"

    def yosys(*commands: str) -> None:
        for command in commands:
            libyosys.run_pass(command, design)

    shapes: list[list[Shapes]] = []

    def cut(keep: bool) -> None:
        """Cuts the multipliers of a flat design, or slices their operands."""
        yosys("opt_clean", "opt_expr", "wreduce", "opt_clean", "write_json whole.json")
        whole = json.loads(Path("whole.json").read_text())
        shapes.append(cut_products(whole, top, slice_bits=3 if keep else SLICE, keep=keep))
        Path("cut.json").write_text(json.dumps(whole))
        yosys("design -reset", "read_json cut.json", f"hierarchy -check -top {top}")

    def prepare(name: str, file: str, unknown: str) -> None:
        """Reads a design and resolves its memories and unknowns."""
        reader = "read_rtlil" if file.endswith(".il") else "read_verilog"
        yosys(f"{reader} {file}", f"hierarchy -check -top {top}", "proc")
        if kind == "designs":
            yosys("flatten")
            if products == "cut" or (products == "sliced" and name == "first"):
                cut(keep=products == "sliced")
        else:
            # Parents first: an instance's ports must not have those of its own instances yet.
            for module in modules:
                yosys(f"expose -evert {module}/t:* {module}/t:$* %d")
        if kind == "modules" or registers == "named":
            # Both sides in their least widths, so that equal multipliers look equal.
            yosys("opt_clean", "opt_expr", "wreduce")
        yosys("opt_clean")
        yosys("memory -nordff -nomap", f"setundef -{unknown}", "memory_map")
        yosys("setundef -undriven -zero", "setundef -init -zero", "opt_clean", "dffunmap")
        yosys("opt_clean")

    def match_registers() -> None:
        """Cuts the registers out of both stashed designs."""
        designs = []
        for name in ("first", "second"):
            yosys(f"design -load {name}", "write_json registers.json")
            designs.append(json.loads(Path("registers.json").read_text()))
        print(cut_registers(*(each["modules"][top] for each in designs)), "pairs of registers")
        for name, each in zip(("first", "second"), designs, strict=True):
            Path("registers.json").write_text(json.dumps(each))
            yosys("design -reset", "read_json registers.json", "opt_clean")
            yosys(f"design -stash {name}")

    def verdict() -> str:
        yosys("miter -equiv -flatten gold gate miter", "hierarchy -top miter", "techmap")
        yosys("aigmap", "setundef -anyseq", "write_aiger -zinit miter.aig")
        scripts = COMBINATIONAL if registers == "named" else SEQUENTIAL
        for script, seconds in scripts.items():
            try:
                text = subprocess.run(
                    [str(abc), "-c", script],
                    capture_output=True,
                    text=True,
                    timeout=seconds,
                    check=True,
                ).stdout
            except subprocess.TimeoutExpired:
                continue
            print(text)
            if "Networks are equivalent" in text or "UNSATISFIABLE" in text:
                return "equal"
            different = ("NOT EQUIVALENT", "SATISFIABLE", "was asserted", "asserted output")
            if any(words in text for words in different):
                return "different"
        return "undecided"

    for name, file, unknown in (("first", first, "zero"), ("second", second, "anyseq")):
        prepare(name, file, unknown)
        yosys(f"design -stash {name}")
    if registers == "named":
        match_registers()
    verdicts = {}
    if products == "cut" and (not shapes[0] or shapes[0] != shapes[1]):
        # Products of other operands: nothing to match, and no proof of a difference
        print(*shapes, sep="\n")
        verdicts["design"] = "undecided"
        Path(answer).write_text(json.dumps(verdicts))
        return
    labels = {"design": top} if kind == "designs" else {module: module for module in modules}
    for label, module in labels.items():
        yosys("design -reset", f"design -copy-from first -as gold {module}")
        yosys(f"design -copy-from second -as gate {module}")
        verdicts[label] = verdict()
    Path(answer).write_text(json.dumps(verdicts))


if __name__ == "__main__":
    _main(*sys.argv[1:])
