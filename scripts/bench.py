"""Measures the figures of docs/results and writes them there (`make bench`)."""

import argparse
import json
from pathlib import Path

from systolora_sim.figures import measure, render


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build-dir", type=Path, default=Path("build"))
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    figures = measure(arguments.build_dir)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("figures.json", json.dumps(figures, indent=2) + "\n"),
        ("figures.md", render(figures)),
    ):
        (arguments.output / name).write_text(text, encoding="utf-8")
        print(arguments.output / name)


if __name__ == "__main__":
    main()
