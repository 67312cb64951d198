"""Measures docs/results/scalesim.* with the real SCALE-Sim, in an environment of its own.

The environment and all runs are kept below the build directory: a second call resumes.
"""

import argparse
import sys
from pathlib import Path

from systolora_sim.runner import RunError, check_output, write_json
from systolora_sim.scalesim_report import render
from systolora_sim.scalesim_runs import measure


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--build-dir", type=Path, default=Path("build") / "scalesim")
    parser.add_argument("--max-cycles", type=int, help="leave out what takes longer")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs") / "results")
    arguments = parser.parse_args()
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)
        figures_file, table_file = (arguments.output / f"scalesim.{end}" for end in ("json", "md"))
        check_output(figures_file, [table_file])
        command = " ".join(["python scripts/scalesim.py", *sys.argv[1:]])
        figures = measure(arguments.build_dir, arguments.max_cycles, command)
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


if __name__ == "__main__":
    sys.exit(main())
