"""Writes docs/contract.md again, from the tables of hw/systolora/contract.py."""

import argparse
import sys
from pathlib import Path

from systolora.render import render_markdown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/contract.md"))
    output = parser.parse_args().output
    try:
        output.write_text(render_markdown(), encoding="utf-8")
    except OSError as error:
        print(f"{output}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
