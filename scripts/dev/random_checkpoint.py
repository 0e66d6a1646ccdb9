"""Write a known configuration with random weights, to time a network before there is a trained one.

Latency does not depend on the weights; masks of such a checkpoint mean nothing.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from nrd_trt.data.classes import known_classes, voc_palette
from nrd_trt.model.checkpoint import save_checkpoint
from nrd_trt.model.config import KNOWN_CONFIGS
from nrd_trt.model.network import random_network
from nrd_trt.specs import ModelInfo


def main() -> None:
    """Parse the arguments and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", choices=KNOWN_CONFIGS)
    parser.add_argument("-o", dest="output", type=Path, required=True, metavar="FILE.safetensors")
    parser.add_argument("--num-classes", type=int, metavar="K", help="instead of the configuration's")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    args = parser.parse_args()
    config = KNOWN_CONFIGS[args.config]
    config = replace(config, num_classes=args.num_classes or config.num_classes)
    names, palette = known_classes(config.num_classes) or (
        tuple(f"class_{index}" for index in range(config.num_classes)),
        voc_palette(config.num_classes),
    )
    model = random_network(config, ModelInfo(class_names=names, palette=palette), seed=args.seed)
    save_checkpoint(model, args.output)


if __name__ == "__main__":
    main()
