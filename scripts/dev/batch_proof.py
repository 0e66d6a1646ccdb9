"""Segment 2,000 images with `nrd-trt batch`, kill it three times, and hold what came of it against the engine's masks.

    python scripts/dev/batch_proof.py docs/batch-proof.md [--images 2000] [--rounds 3] [--seed 0]

The images are CamVid's where `NRD_TRT_CAMVID` names them, repeated, and drawn ones. 0.9 % of them are damaged, which is
exit 0 by default, then 1.1 %, which is exit 1. Then the overhead: jobs of one worker and a bare loop over the same
engine (read, predict, write) take turns. It ends with 1 if anything is not as it must be.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
from PIL import Image

import nrd_trt
from nrd_trt.data.images import read_image
from nrd_trt.data.overlay import write_mask, write_rgb
from nrd_trt.data.synthetic import street_scene
from nrd_trt.runtime.engine import Engine
from nrd_trt.specs import format_size
from nrd_trt.zoo import checkpoint_path

_SIZE_HW, _BATCH, _DRAWN, _KILLS = (128, 192), 8, 40, 3
_VERB = (sys.executable, "-c", "from nrd_trt.cli.main import main; main()", "batch")


@dataclass(frozen=True, kw_only=True)
class Killed:
    """A job that was killed and went on.

    Attributes:
        at: Masks that stood when it was killed, for each kill.
        again: Masks that were written again after each kill.
        code: Exit code of the run that ended by itself.
        problems: What is not as it must be.
    """

    at: tuple[int, ...]
    again: tuple[int, ...]
    code: int
    problems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """Milliseconds for each image of a bare loop and of a job with one worker, and seconds until a job is at work."""

    bare_ms: float
    batch_ms: float
    start_s: float


def main() -> int:
    """Prove, measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("document", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3, help="of the overhead, on a machine at rest; 0 leaves it out")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = nrd_trt.build(
            checkpoint_path("nrd_mobilenetv2_camvid"),
            folder / "a.nrd",
            precision="fp32",
            size=_SIZE_HW,
            builder="onnxruntime",
            progress=False,
        ).path
        pool = _pool_of_images(folder / "pool")
        proofs = {}
        for share, kills in ((0.009, _KILLS), (0.011, 0)):
            source = _source(pool, folder / f"source-{share}", args.images, round(share * args.images))
            proofs[share] = _prove(source, folder / f"masks-{share}", bundle, kills, random.Random(args.seed))
            print(share, proofs[share], file=sys.stderr, flush=True)
        overhead = _overhead(pool, folder / "timed", bundle, args.rounds) if args.rounds else None
    problems = [problem for proof in proofs.values() for problem in proof.problems]
    problems += [f"{share}: exit {proof.code}" for share, proof in proofs.items() if proof.code != (share > 0.01)]
    args.document.write_text(_page(args.images, proofs, overhead, problems))
    return int(bool(problems))


def _pool_of_images(folder: Path) -> list[Path]:
    """Return different pictures: CamVid's validation frames, where they are, and drawn scenes."""
    folder.mkdir()
    for index in range(_DRAWN):
        write_rgb(folder / f"{index}.png", street_scene(index, (360, 480)).image)
    camvid = Path(os.environ.get("NRD_TRT_CAMVID", "absent")) / "val/images"
    return sorted([*folder.iterdir(), *(camvid.iterdir() if camvid.is_dir() else ())])


def _source(pool: Sequence[Path], folder: Path, count: int, damaged: int) -> Path:
    """Lay out `count` images, in ten subfolders, of which `damaged` break off in the middle."""
    step = count // damaged
    for index in range(count):
        picture = pool[index % len(pool)]
        target = folder / str(index % 10) / f"{index:05}{picture.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        if index % step == 0 and index // step < damaged:
            target.write_bytes(picture.read_bytes()[:500])
        else:
            shutil.copy(picture, target)
    return folder


def _prove(source: Path, output: Path, bundle: Path, kills: int, random_source: random.Random) -> Killed:
    """Run a job, kill it at random moments, let it go on to its end, and compare its masks."""
    images = sorted(path for path in source.rglob("*") if path.is_file())
    command = [
        *_VERB,
        str(source),
        "-o",
        str(output),
        "--bundle",
        str(bundle),
        "--resume",
        "--json",
        "--batch",
        str(_BATCH),
    ]
    at, again = [], []
    before: dict[str, int] = {}
    for count in sorted(random_source.sample(range(len(images) // 20, len(images) * 9 // 10), kills)):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and len(_written(output)) < count:
                time.sleep(0.2)
            process.send_signal(signal.SIGKILL)
        time.sleep(5)  # its workers die after it
        found = _written(output)
        again.append(sum(found[name] != when for name, when in before.items()))
        at.append(len(found))
        before = found
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    found = _written(output)
    again.append(sum(found[name] != when for name, when in before.items()))
    problems = [*_problems(images, source, output, bundle, done.stdout)]
    limit = _BATCH * len(os.sched_getaffinity(0))
    problems += [f"{count} masks again after a kill, at most {limit} may be" for count in again if count > limit]
    return Killed(at=tuple(at), again=tuple(again[1:] if kills else ()), code=done.returncode, problems=tuple(problems))


def _written(output: Path) -> dict[str, int]:
    """Return when each mask was written."""
    masks = (path for path in output.glob("[0-9]/*.png"))
    return {str(path.relative_to(output)): path.stat().st_mtime_ns for path in masks}


def _problems(images: Sequence[Path], source: Path, output: Path, bundle: Path, printed: bytes) -> list[str]:
    """Return what is wrong: masks that differ, images that are missing, done twice or failed in silence."""
    problems, listed = [], {failure["path"] for failure in json.loads(printed)["failures"]}
    marks = [path for file in (output / "_nrd_batch/commits").iterdir() for path, *_ in json.loads(file.read_bytes())]
    if sorted(marks) != [str(path) for path in images]:
        problems.append(f"{len(images)} images, {len(marks)} marks of {len(set(marks))} images")
    drawn: dict[bytes, np.ndarray | None] = {}  # pictures repeat
    with nrd_trt.open_bundle(bundle, threads=1) as engine:
        for path in images:
            mask, data = output / path.relative_to(source).with_suffix(".png"), path.read_bytes()
            if data not in drawn:
                drawn[data] = _predicted(engine, data)
            expected = drawn[data]
            if expected is None:
                problems += [f"{path.name}: damaged, and not listed"] * (str(path) not in listed)
                problems += [f"{path.name}: damaged, and has a mask"] * mask.exists()
            elif not (mask.is_file() and np.array_equal(np.array(Image.open(mask)), expected)):
                problems.append(f"{path.name}: another mask than the engine's, or none")
    return problems


def _predicted(engine: Engine, data: bytes) -> np.ndarray | None:
    """Return the engine's mask of an image; None where it is damaged."""
    try:
        return engine.predict(read_image(data))
    except nrd_trt.ConfigError:
        return None


def _overhead(pool: Sequence[Path], folder: Path, bundle: Path, rounds: int) -> Overhead:
    """Measure in turn; the start of a job is what two jobs of different length have in common."""
    small, large = 50, 400
    sources = {n: _source(pool, folder / f"source-{n}", n, 1) for n in (small, large)}
    bare, slopes, starts = [], [], []
    for turn in range(rounds):
        bare.append(_bare_ms(sources[large], folder / f"bare-{turn}", bundle))
        took = {}
        for n, source in sources.items():
            start = time.perf_counter()
            job = [
                *_VERB,
                str(source),
                "-o",
                str(folder / f"{n}-{turn}"),
                "--bundle",
                str(bundle),
                "-q",
                "--concurrency",
                "1",
            ]
            options = ["--threads", "1", "--max-error-share", "1"]
            subprocess.run([*job, *options], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            took[n] = time.perf_counter() - start
        slopes.append((took[large] - took[small]) / (large - small) * 1000)
        starts.append(took[small] - slopes[-1] * small / 1000)
    return Overhead(
        bare_ms=statistics.median(bare), batch_ms=statistics.median(slopes), start_s=statistics.median(starts)
    )


def _bare_ms(source: Path, output: Path, bundle: Path) -> float:
    """Return the milliseconds for each image of a loop that reads, predicts and writes."""
    images = sorted(path for path in source.rglob("*") if path.is_file())[1:]  # the first is damaged
    output.mkdir()
    with nrd_trt.open_bundle(bundle, threads=1) as engine:
        engine.predict(read_image(images[0]))
        start = time.perf_counter()
        for path in images:
            write_mask(output / f"{path.stem}.png", engine.predict(read_image(path)), engine.info.palette)
    return (time.perf_counter() - start) / len(images) * 1000


def _page(count: int, proofs: dict[float, Killed], overhead: Overhead | None, problems: Sequence[str]) -> str:
    """Return the page."""
    killed, failed = proofs.values()
    again = ", ".join(map(str, killed.again))
    machine = f"{len(os.sched_getaffinity(0))} cores, no GPU"
    return f"""# A batch job that is killed

Written by `make batch-proof` on {date.today().isoformat()}, {machine}: {count} images (CamVid and drawn, 480x360),
`nrd_mobilenetv2_camvid` in fp32 at {format_size(_SIZE_HW)} in ONNX Runtime, batches of {_BATCH}.

| | 0.9 % damaged | 1.1 % damaged |
|---|---|---|
| SIGKILL, at so many masks | {", ".join(map(str, killed.at))} | none |
| masks written again after each | {again} | |
| exit code of the run that ended by itself | {killed.code} | {failed.code} |
| missing, twice, other than the engine's, or failed and not listed | {len(killed.problems)} | {len(failed.problems)} |

{"Everything is as it must be." if not problems else "NOT as it must be: " + "; ".join(problems[:20])}

## Overhead

{"Not measured: without rounds." if overhead is None else _table(overhead)}
"""


def _table(overhead: Overhead) -> str:
    extra = overhead.batch_ms - overhead.bare_ms
    return f"""A job with one worker and a bare loop over the same engine (read, predict, write) in turn, medians:

| | |
|---|---|
| bare loop | {overhead.bare_ms:.1f} ms for each image |
| `batch`, without its start | {overhead.batch_ms:.1f} ms for each image: {extra / overhead.bare_ms:+.1%} |
| start and end of a job: Python, Ray, the worker and its engine | {overhead.start_s:.1f} s |"""


if __name__ == "__main__":
    sys.exit(main())
