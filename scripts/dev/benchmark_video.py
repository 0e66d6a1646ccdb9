"""Compare the frame rate of whole video runs with bare inference on the same clip.

    python scripts/dev/benchmark_video.py r18.nrd clip.mp4 --threads 2 --rounds 5

`bare` runs the engine on frames that were read and prepared before; `null` is `nrd-trt video CLIP -o null`, and `mp4`
the same with the overlay written as H.264. The three take turns in every round.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from nrd_trt.runtime.engine import open_engine
from nrd_trt.runtime.select import RunOptions
from nrd_trt.video.segment_video import segment_video
from nrd_trt.video.sources.open_source import open_source


def main() -> None:
    """Parse the arguments, run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("clip")
    parser.add_argument("--runner", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rates: dict[str, list[float]] = {"bare": [], "null": [], "mp4": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.rounds):
            rates["bare"].append(_bare(args))
            rates["null"].append(_whole(args, "null"))
            rates["mp4"].append(_whole(args, Path(folder) / "overlay.mp4"))
    print(f"{args.bundle} on {args.clip}: {args.rounds} rounds, medians (smallest-largest)")
    for name, values in rates.items():
        shares = [value / bare for value, bare in zip(values, rates["bare"], strict=True)]
        print(f"  {name:<5}{_shown(values, 2)} frames/s, {_shown(shares, 3)} of bare inference in the same round")


def _bare(args: argparse.Namespace) -> float:
    """Frames per second of the engine alone."""
    with open_engine(args.bundle, RunOptions(runner=args.runner, threads=args.threads)) as engine:
        with open_source(args.clip) as source:
            feeds = [engine.feed(engine.fitted(frame.rgb).image) for frame in source]
        engine.runner.infer(feeds[0])
        start = time.perf_counter()
        for feed in feeds:
            engine.runner.infer(feed)
        return len(feeds) / (time.perf_counter() - start)


def _whole(args: argparse.Namespace, sink: Path | str) -> float:
    """Frames per second from the first frame written to the last."""
    rate = segment_video(
        args.clip, sink, args.bundle, runner=args.runner, threads=args.threads, force=True, progress=False
    ).fps
    if rate is None:
        raise SystemExit(f"{args.clip}: expected more than one frame.")
    return rate


def _shown(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


if __name__ == "__main__":
    main()
