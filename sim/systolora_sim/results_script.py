"""What the scripts that write docs/results share: both files or none, and one line for an error."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from systolora_sim.runner import RunError, check_output, write_json

__all__ = ["write_results"]


def write_results(
    directory: Path,
    name: str,
    measure: Callable[[], dict[str, Any]],
    render: Callable[[dict[str, Any]], str],
) -> int:
    """Measures, and writes <name>.json and <name>.md there; returns the exit status."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        figures_file, table_file = (directory / f"{name}.{end}" for end in ("json", "md"))
        check_output(figures_file, [table_file])
        figures = measure()
        write_json(figures_file, figures)
        temporary = table_file.with_suffix(".md.part")
        temporary.write_text(render(figures), encoding="utf-8")
        temporary.replace(table_file)
    except RunError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename}: cannot be written: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr)
        return 130
    print(figures_file, table_file, sep="\n")
    return 0
