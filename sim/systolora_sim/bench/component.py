"""Runs cocotb tests on one generated component."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path

from systolora_sim.bench.build import (
    BenchError,
    Simulator,
    make_runner,
    quiet_environment,
    tail,
)

__all__ = ["run_bench"]


def run_bench(
    simulator: Simulator,
    top: str,
    module: str,
    directory: Path,
    *,
    tests: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Runs the cocotb tests of a Python module; returns the simulator's log.

    Parameters
    ----------
    simulator : from `build_component`
    top : name of the Verilog module
    module : Python module with the tests, importable as in this process
    directory : where the log and the results go
    tests : regular expression of the tests' names, by default all
    environment : variables for the tests

    Raises
    ------
    BenchError
        If a test failed or none ran, with the end of the log.
    """
    log, results = directory / "sim.log", directory / "results.xml"
    results.unlink(missing_ok=True)
    failure = ""
    try:
        with quiet_environment():
            make_runner(simulator.name).test(
                test_module=module,
                hdl_toplevel=top,
                hdl_toplevel_lang="verilog",
                build_dir=simulator.directory,
                test_dir=directory,
                results_xml=str(results),
                test_filter=tests,
                extra_env=dict(environment or {}),
                log_file=log,
            )
    except (SystemExit, OSError, RuntimeError) as error:
        failure = str(error)
    if not results.exists():
        raise BenchError(f"the simulator stopped without a result ({failure}):\n{tail(log)}")
    cases = list(ElementTree.parse(results).iter("testcase"))
    ran = [case for case in cases if case.find("skipped") is None]
    failed = [
        case for case in ran if case.find("failure") is not None or case.find("error") is not None
    ]
    if failed or not ran:
        names = ", ".join(case.get("name", "?") for case in failed) or "no test ran"
        raise BenchError(f"{module}: {names} failed:\n{tail(log, 60)}")
    return log.read_text(encoding="utf-8")
