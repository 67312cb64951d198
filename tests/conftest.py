"""What all tests share: the seeds in the report's header, Hypothesis without a random one."""

import ast
from pathlib import Path

from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("fixed")


def pytest_report_header() -> list[str]:
    """Every test file's SEED, so that a log says what was run."""
    seeds = []
    for file in sorted(Path(__file__).parent.glob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Name)
                and "SEED" in node.targets[0].id
            ):
                seeds.append(f"{file.stem}.{node.targets[0].id} = {ast.unparse(node.value)}")
    return [f"seeds: {', '.join(seeds)}; Hypothesis is derandomized"]
