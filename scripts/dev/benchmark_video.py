"""Compare the frame rate of whole video runs with bare inference on the same clip, and watch memory over many frames.

    python scripts/dev/benchmark_video.py r18.nrd clip.mp4 --threads 2 --rounds 5
    python scripts/dev/benchmark_video.py r18.nrd clip.mp4 --threads 2 --memory 5000

`bare` runs the engine on frames that were read and prepared before; `null` is `nrd-trt video CLIP -o null`, and `mp4`
the same with the overlay written as H.264. The three take turns in every round. With `--memory` the clip is played over
and over, with overlay and file, and the resident memory is read every so many frames.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from nrd_trt.runtime.engine import open_engine
from nrd_trt.runtime.engine_thread import EngineThread
from nrd_trt.video.frames import Ending, Frame, SegmentedFrame, Sink, Source, StreamInfo
from nrd_trt.video.overlay import OverlayStyle, Painter
from nrd_trt.video.pipeline import Pipeline
from nrd_trt.video.segment_video import segment_video
from nrd_trt.video.sinks.mp4 import Mp4Sink
from nrd_trt.video.sources.open_source import open_source

_LOOK_EVERY = 250  # frames
_KIB_PER_MIB = 1024


def main() -> None:
    """Parse the arguments, run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("clip")
    parser.add_argument("--runner", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=int, metavar="FRAMES", help="watch memory over so many frames instead")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "overlay.mp4"
        if args.memory:
            _watch_memory(args, target)
        else:
            _compare(args, target)


def _compare(args: argparse.Namespace, target: Path) -> None:
    rates: dict[str, list[float]] = {"bare": [], "null": [], "mp4": []}
    for _ in range(args.rounds):
        rates["bare"].append(_bare(args))
        rates["null"].append(_whole(args, "null"))
        rates["mp4"].append(_whole(args, target))
    print(f"{args.bundle} on {args.clip}: {args.rounds} rounds, medians (smallest-largest)")
    for name, values in rates.items():
        shares = [value / bare for value, bare in zip(values, rates["bare"], strict=True)]
        print(f"  {name:<5}{_shown(values, 2)} frames/s, {_shown(shares, 3)} of bare inference in the same round")


def _bare(args: argparse.Namespace) -> float:
    """Frames per second of the engine alone."""
    with open_engine(args.bundle, runner=args.runner, threads=args.threads) as engine:
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


class _Repeated:
    """A clip played again and again, up to a number of frames; see `nrd_trt.video.frames.Source`."""

    reconnects = 0

    def __init__(self, clip: str, frames: int) -> None:
        self._clip, self._frames, self._stopped = clip, frames, False
        with open_source(clip) as source:
            self.info: StreamInfo = source.info

    def __iter__(self) -> Iterator[Frame]:
        index = pts = 0
        while True:
            with open_source(self._clip) as source:
                for frame in source:
                    if self._stopped or index == self._frames:
                        return
                    yield replace(frame, index=index, pts=pts)
                    index, pts = index + 1, pts + (frame.duration or 1)

    def stop(self) -> None:
        """End soon."""
        self._stopped = True

    def __enter__(self) -> _Repeated:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing stays open."""


class _MemoryLog:
    """A sink that notes the resident memory of this process."""

    shows_picture = False

    def open(self, info: StreamInfo) -> None:
        """Print the head of the table."""
        print("frame  resident MiB")

    def write(self, frame: SegmentedFrame) -> None:
        """Look, every so many frames."""
        if frame.frame.index % _LOOK_EVERY == 0:
            print(f"{frame.frame.index:>5}  {_resident_mib():.1f}", flush=True)

    def close(self, ending: Ending) -> None:
        """Nothing is open."""


def _watch_memory(args: argparse.Namespace, target: Path) -> None:
    source: Source = _Repeated(args.clip, args.memory)
    sinks: list[Sink] = [Mp4Sink(target, force=True, report=print), _MemoryLog()]
    engine = open_engine(args.bundle, runner=args.runner, threads=args.threads)
    with EngineThread(engine) as thread:
        Pipeline(source, thread, sinks, paint=Painter(engine.info, OverlayStyle(legend=True))).run()


def _resident_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / _KIB_PER_MIB
    return 0.0


if __name__ == "__main__":
    main()
