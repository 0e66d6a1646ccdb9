"""Hold overlapped runs of a bundle's plan against plain ones, bit for bit, and compare their frames per second.

    python scripts/dev/benchmark_overlap.py model.nrd --runner tensorrt

Copies between host and device are part of both. Exits 1 where an output differs.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from nrd_trt.benchmarking.overlap import benchmark_overlap


def main() -> int:
    """Parse the arguments and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runner", required=True, choices=("tensorrt", "tensorrt-rtx"))
    parser.add_argument("--frames", type=int, default=200, metavar="N", help="timed at a time (default 200)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of each (default 5)")
    parser.add_argument("--json", action="store_true", help="print one object")
    options = parser.parse_args()
    row = benchmark_overlap(options.bundle, options.runner, frames=options.frames, rounds=options.rounds)
    if options.json:
        print(json.dumps(row))
    elif row["equal"]:
        print(
            f"{row['target']} at {row['size']} on {row['runner']}: {row['plain_fps']:.1f} frames/s run by run, "
            f"{row['overlapped_fps']:.1f} overlapped, ratio {row['ratio']:.2f}"
        )
    else:
        print(f"{row['target']} on {row['runner']}: overlapped runs differ from plain ones; nothing was timed")
    return 0 if row["equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
