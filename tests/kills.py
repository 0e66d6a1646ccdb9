"""Kills every verb that writes with SIGKILL, at seeded moments, and looks at what is left.

python -m tests.kills docs/kills.md [--kills 20] [--replacing 150] [--seed 0]

Half of the moments lie anywhere in the run, half where it writes: from when a temporary appears beside the output to
the end. After each kill the output is absent, the old one or a whole new one; after one more run, which is left alone,
there is the output and nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import onnx
import torch

import nrd_trt
from nrd_trt.calibration.cache import load_ranges
from nrd_trt.cli.main import app
from nrd_trt.engine.bundle import read_bundle
from nrd_trt.model import load_model
from nrd_trt.model.checkpoint import save_checkpoint
from nrd_trt.optimization.tune_record import state_path
from nrd_trt.packaging.folders import check_ours
from nrd_trt.training.record import STATE
from tests import artefacts, helpers
from tests.training.conftest import SIZE, labelled, tiny

_LONG_S = 3600.0
_FRAMES = 40


@dataclass(frozen=True, kw_only=True)
class Verb:
    """What is killed: it writes `output` into a folder, and `check` raises if that is not whole.

    A verb that `resumes` goes on with what a kill left; what others left is removed first, unless they replace it.
    """

    name: str
    output: str
    run: Callable[[Path], object]
    check: Callable[[Path], object]
    replaces: bool = False
    resumes: bool = False


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the kills of one verb left."""

    verb: str
    outputs: Counter[str]
    temporaries: int
    broken: tuple[str, ...]
    at_the_end: tuple[str, ...]
    """Names beside the output after a run that was left alone."""

    @property
    def killed(self) -> int:
        """Runs that were killed, and not at their end before."""
        return self.outputs.total() - self.outputs["ended before"]

    def row(self) -> str:
        """Return it as a row of the table."""
        counts = " | ".join(str(self.outputs[what]) for what in ("absent", "old", "whole", "ended before"))
        return (
            f"| {self.verb} | {self.killed} | {counts} | {self.temporaries} | {len(self.broken)} | "
            f"{', '.join(self.at_the_end) or 'nothing'} |"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill, look and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("document", type=Path)
    parser.add_argument("--kills", type=int, default=20, help="of each verb")
    parser.add_argument("--replacing", type=int, default=150, help="of a build that replaces a bundle")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="verbs whose name matches; the page keeps the rows of others")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    random_source = random.Random(args.seed)
    kept = helpers.run_folder()
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for verb in _verbs(Path(folder)):
            if not re.search(args.only, verb.name):
                continue
            place = Path(folder) / verb.name.replace(" ", "-")
            found.append(_kill(verb, place, args.replacing if verb.replaces else args.kills, random_source))
            print(found[-1].row(), *found[-1].broken, sep="\n", file=sys.stderr, flush=True)
            rows = {**_rows(args.document), verb.name: found[-1].row()}
            args.document.write_text(_document(rows, found, args.seed))
    shutil.rmtree(kept)
    return int(any(one.broken or one.at_the_end for one in found))


def _verbs(folder: Path) -> tuple[Verb, ...]:
    images, frames = artefacts.scenes(folder / "images", 8, labels=True), artefacts.scenes(folder / "frames", _FRAMES)
    data = labelled(folder / "labelled")
    source, bundle = artefacts.checkpoint(), artefacts.bundle()
    small = ("--size", artefacts.SIZE, "--threads", 1)
    lenient = ("--min-agreement", artefacts.LENIENT, "--builder", "onnxruntime")
    ranges = ("--data", images, "--recipe", "minmax", "--images", 8)
    tuning = ("--data", images, "--calibration", images, "--recipe", "minmax", *small, "--min-agreement", 1.0)
    build = partial(_run, "build", source, "--precision", "fp16", *lenient, *small)
    return (
        Verb(name="build", output="a.nrd", run=build, check=read_bundle),
        Verb(
            name="calibrate",
            output="a.json",
            run=partial(_run, "calibrate", source, *ranges, *small[:2]),
            check=load_ranges,
        ),
        Verb(name="tune", output="a.nrd", run=partial(_tune, source, *tuning), check=read_bundle),
        Verb(
            name="optimize", output="found", run=partial(_optimize, source, images), check=_check_search, resumes=True
        ),
        Verb(name="train", output="run", run=partial(_train, data), check=_check_run, resumes=True),
        Verb(
            name="prune",
            output="pruned",
            run=partial(_prune, _small(folder / "small.safetensors"), data),
            check=_check_run,
            resumes=True,
        ),
        Verb(
            name="video",
            output="a.mp4",
            run=partial(_run, "video", frames / "images", "--bundle", bundle),
            check=_check_clip,
        ),
        Verb(name="export", output="a.onnx", run=partial(_run, "export", source, *small[:2]), check=_check_onnx),
        Verb(
            name="package",
            output=f"{bundle.stem}_bundle",
            run=partial(_package, bundle),
            check=partial(check_ours, package=bundle.stem),
        ),
        Verb(name="build that replaces", output="a.nrd", run=build, check=read_bundle, replaces=True),
    )


def _run(verb: str, *arguments: object) -> None:
    *options, output = arguments
    app([verb, *map(str, options), "-o", str(output), "--force", "-q"])


def _tune(*arguments: object) -> None:
    *options, output = arguments
    kept = state_path(Path(str(output))).exists()
    app(["tune", *map(str, options), "-o", str(output), "--resume" if kept else "--force", "-q"])


def _package(bundle: Path, output: Path) -> None:
    app(["package", str(bundle), "--for", "triton", "-o", str(output.parent), "--force", "-q"])


def _train(data: Path, output: Path) -> None:
    resume = (output / STATE).is_file()
    recipe = tiny(steps=12, evaluations=6)
    nrd_trt.train(recipe, [data], output, resume=resume, force=not resume, progress=False)


def _small(path: Path) -> Path:
    """Write the checkpoint of a network that is pruned in a second."""
    save_checkpoint(
        helpers.small_model(channels=32, controller_channels=32, info={"size_hw": SIZE, "ignore_index": 11}), path
    )
    return path


def _prune(source: Path, data: Path, output: Path) -> None:
    resume = (output / STATE).is_file()
    recipe = tiny(steps=12, evaluations=6, synthetic_share=0.0)
    nrd_trt.prune(source, output, data, recipe=recipe, resume=resume, force=not resume, progress=False)


def _optimize(source: Path, images: Path, output: Path) -> None:
    options = ("--sizes", artefacts.SIZE, "--precisions", "fp32,int8", "--calibration", "synthetic", "--images", 3)
    options += ("--recipe", "minmax", "--threads", 1, "--min-agreement", 0.8, "--max-miou-drop", 0.5, "-q")
    again = "--force" if (output / "optimize.json").exists() else "--resume"
    app(["optimize", str(source), "-o", str(output), "--data", str(images), *map(str, options), again])


def _check_search(folder: Path) -> None:
    """Every file that is there can be read."""
    for path in folder.rglob("*.json"):
        json.loads(path.read_bytes())
    for bundle in (folder / "best.nrd", *folder.glob("candidates/[!.]*.nrd")):
        if bundle.exists():
            read_bundle(bundle)


def _check_run(folder: Path) -> None:
    """Every file that is there can be read."""
    for path in folder.glob("*.safetensors"):
        load_model(path)
    if (folder / STATE).is_file():
        torch.load(folder / STATE, weights_only=True)


def _check_clip(path: Path) -> None:
    with av.open(str(path)) as container:
        frames = sum(1 for _ in container.decode(video=0))
    if frames != _FRAMES:
        raise ValueError(f"{path}: expected {_FRAMES} frames, got {frames}")


def _check_onnx(path: Path) -> None:
    onnx.checker.check_model(onnx.load(path))


def _kill(verb: Verb, place: Path, kills: int, random_source: random.Random) -> Found:
    place.mkdir()
    output = place / verb.output
    honest_s, writing_s = map(min, zip(*(_time(verb, place) for _ in range(2)), strict=True))
    honest = _paths(place)
    outputs, broken, temporaries = Counter[str](), [], 0
    for kill in itertools.count():
        if outputs.total() - outputs["ended before"] == kills:
            break
        writing = kill % 2 == 1
        delay_s = random_source.uniform(0.0, writing_s if writing else honest_s)
        if not (verb.replaces or verb.resumes):
            _remove(output)
        before = _stamp(output)
        ended, _ = _child(verb, output, delay_s, writing=writing)
        outputs["ended before" if ended is not None else _state(output, before)] += 1
        temporaries += not _paths(place) <= honest
        if fault := _fault(verb, output):
            moment = "after the first temporary" if writing else "after the start"
            broken.append(f"kill {kill}, {delay_s:.3f} s {moment}: {fault}")
    _time(verb, place)
    verb.check(output)
    left = tuple(sorted(_paths(place) - honest))
    return Found(verb=verb.name, outputs=outputs, temporaries=temporaries, broken=tuple(broken), at_the_end=left)


def _fault(verb: Verb, output: Path) -> str:
    """Return what is wrong with an output after a kill; empty where nothing is."""
    if not output.exists():
        return "the old output is gone" if verb.replaces else ""
    try:
        verb.check(output)
    except Exception as exc:
        return f"{type(exc).__name__}: {exc}"
    return ""


def _time(verb: Verb, place: Path) -> tuple[float, float]:
    """Return the seconds of a run that is left alone, and of these how many passed after the first temporary."""
    start = time.monotonic()
    code, writing_since = _child(verb, place / verb.output)
    if code != 0:
        raise RuntimeError(f"{verb.name}: expected exit code 0, got {code}: {_log(place).read_text()}")
    end = time.monotonic()
    return end - start, end - (writing_since or start)


def _child(
    verb: Verb, output: Path, delay_s: float = _LONG_S, *, writing: bool = False
) -> tuple[int | None, float | None]:
    """Run in a process of its own; return its exit code, and when its first temporary was seen.

    It is killed, and has no exit code, `delay_s` after its start, or after that temporary.
    """
    before = _paths(output.parent)
    child = os.fork()
    if child == 0:
        os.setsid()
        os._exit(_outcome(verb, output))
    begun, seen = time.monotonic(), None
    with os.fdopen(os.pidfd_open(child)) as end:
        while not (ended := bool(select.select([end], [], [], 0.0005)[0])):
            if seen is None and not _paths(output.parent) <= before:
                seen = time.monotonic()
            since = seen if writing else begun
            if since is not None and time.monotonic() - since >= delay_s:
                with suppress(ProcessLookupError):  # a group of its own is the first thing that it makes
                    os.killpg(child, signal.SIGKILL)
                os.kill(child, signal.SIGKILL)
                break
    _, status = os.waitpid(child, 0)
    return (os.waitstatus_to_exitcode(status) if ended else None), seen


def _paths(folder: Path) -> set[str]:
    """Return everything below a folder; a training run writes its temporaries into its own."""
    return {os.path.join(root, name) for root, folders, files in os.walk(folder) for name in (*folders, *files)}


def _log(place: Path) -> Path:
    return place.with_name(f"{place.name}.log")


def _outcome(verb: Verb, output: Path) -> int:
    log = os.open(_log(output.parent), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    try:
        verb.run(output)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except BaseException:
        traceback.print_exc()
        return 70
    return 0


def _state(output: Path, before: Any) -> str:
    if not output.exists():
        return "absent"
    return "old" if _stamp(output) == before else "whole"


def _stamp(output: Path) -> Any:
    """Return what tells two outputs apart that may have the same bytes."""
    return (output.stat().st_ino, output.stat().st_mtime_ns) if output.exists() else None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _rows(document: Path) -> dict[str, str]:
    """Return the rows of a page, by verb."""
    lines = document.read_text().splitlines() if document.exists() else []
    return {line.split("|")[1].strip(): line for line in lines if re.match(r"\| [a-z ]+ \| \d", line)}


def _document(rows: Mapping[str, str], found: Sequence[Found], seed: int) -> str:
    lines = [
        "# Kills",
        "",
        "`make kills` ends every verb that writes with SIGKILL at seeded moments: half of them anywhere in its run,",
        f"half where it writes, from when a temporary appears beside the output to the end (seed {seed}). *Whole*",
        "and *old* outputs were opened and compared with their hashes. What a kill leaves beside the output, under a",
        "hidden or partial name, the next run of the same output removes.",
        "",
        "| verb | kills | no output | old output | whole new output | runs that ended before | left temporaries | "
        "broken | left by the next run |",
        "|---|---|---|---|---|---|---|---|---|",
        *rows.values(),
        "",
        *(f"- {one.verb}: {text}" for one in found for text in one.broken),
    ]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
