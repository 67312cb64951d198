"""Netlists as plain Verilog, so that the benches of the RTL run on gates and proofs compare them.

A module of a design is mapped to the cells of a target; then the models of the cells take the
place of the cells: those of Yosys for FPGAs, the functions of the Liberty files for standard cells.
"""

import re
from pathlib import Path

from systolora.synth.liberty import Library
from systolora.synth.targets import Target
from systolora.synth.tools import SynthError, Tool, run_tool
from systolora.synth.workspace import Workspace

__all__ = ["MODELS", "gates", "replace_module"]

#: Commands that read models of a target's cells, by the beginning of its name.
MODELS: dict[str, tuple[str, ...]] = {
    "ecp5": ("read_verilog -nooverwrite +/lattice/cells_sim_ecp5.v", "read_verilog models.v"),
    "generic": (),
}
_OWN_MODELS = {"ecp5": Path(__file__).with_name("ecp5_models.v")}
_GATES = "gates.v"


def _models(target: Target) -> tuple[tuple[str, ...], str]:
    family = target.name.split("-")[0]
    if family not in MODELS:
        raise SynthError(f"target = {target.name}: no models of its cells to simulate gates with")
    own = _OWN_MODELS.get(family)
    return MODELS[family], own.read_text(encoding="utf-8") if own else ""


def _to_cells(files: list[str], top: str, clean: str) -> list[str]:
    liberty = " ".join(f"-liberty {name}" for name in files)
    return [
        f"synth -flatten -top {top}",
        f"dfflibmap {liberty}",
        f"abc {liberty}",
        clean,
    ]


def gates(
    verilog: str,
    top: str,
    technology: Target | Library,
    yosys: Tool,
    workspace: Workspace,
    names: bool = False,
) -> str:
    """The module `top` of a design as Verilog of what its cells do, with the same ports.

    `names`: with all names that its nets had before, registers' among them.

    Raises
    ------
    SynthError
        If Yosys fails, or there are no models of the target's cells.
    """
    own, texts = "", ()
    clean = "opt_clean" if names else "opt_clean -purge"
    if isinstance(technology, Target):
        mapped = [technology.synth.format(top=top)]
        models, own = _models(technology)
    else:
        texts = technology.texts
        files = [f"lib{number}.lib" for number in range(len(texts))]
        mapped = _to_cells(files, top, clean)
        models = tuple(f"read_liberty -ignore_miss_func {name}" for name in files)
    script = [
        "read_verilog design.v",
        f"hierarchy -check -top {top}",
        *mapped,
        # Only the netlist: mapping to a target leaves empty boxes for its cells in the design
        f"select {top}",
        "write_verilog -noattr -selected netlist.v",
        "design -reset",
        "read_verilog netlist.v",
        *models,
        f"hierarchy -check -top {top}",
        "proc",
        "flatten",
        "opt_expr",
        # A multiplier of a device is wider than its operands; so it looks like ours again
        "wreduce",
        # Resets that a library's flip-flops have and that are tied off
        "opt_dff -nodffe -nosdff",
        clean,
        # A cell without a model would be an empty box, and its outputs unknown
        "check -assert",
        f"write_verilog -noattr {_GATES}",
        "",
    ]

    def run(directory: Path) -> None:
        (directory / "design.v").write_text(verilog, encoding="utf-8")
        (directory / "models.v").write_text(own, encoding="utf-8")
        (directory / "script.ys").write_text("\n".join(script), encoding="utf-8")
        for number, text in enumerate(texts):
            (directory / f"lib{number}.lib").write_text(text, encoding="latin-1")
        run_tool(yosys, ["script.ys"], directory, "yosys.log", workspace.progress.tick)
        for number in range(len(texts)):
            (directory / f"lib{number}.lib").unlink()

    parts = (yosys.description, "\n".join(script), verilog, own, *texts)
    return (workspace.step(f"gates {top}", parts, run) / _GATES).read_text(encoding="utf-8")


def replace_module(design: str, name: str, replacement: str) -> str:
    """A design's Verilog with one module's text replaced.

    Raises
    ------
    SynthError
        If the design has no such module.
    """
    module = re.compile(rf"^module {re.escape(name)}\b.*?^endmodule\n", re.M | re.S)
    if not module.search(design):
        raise SynthError(f"module {name}: not in the design")
    return module.sub(lambda _: replacement.rstrip() + "\n", design, count=1)
