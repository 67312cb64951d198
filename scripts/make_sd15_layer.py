"""Writes the example layer of examples/ again.

Real: the shapes, those of a Stable Diffusion 1.x cross-attention K projection (768 -> 320, 77
tokens, rank 4). Synthetic: every number; see systolora_sim.examples.
"""

import argparse
import sys

from systolora_sim.examples import SD15_FILE, SD15_SEED, write_sd15_layer
from systolora_sim.layerfile import LayerFileError


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", default=f"examples/{SD15_FILE}")
    parser.add_argument("--seed", type=int, default=SD15_SEED)
    arguments = parser.parse_args()
    try:
        write_sd15_layer(arguments.output, arguments.seed)
    except LayerFileError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{arguments.output}: seed {arguments.seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
