"""Fuzzing, guided by coverage, of the parsers that are Python of this toolkit alone; with atheris, where it installs.

python -m tests.hostile.guided PARSER --seconds N --seed N --found DIR

ends with 77 where atheris is not installed, and prints what libFuzzer tells.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_MODULES = ["nrd_trt.engine.record", "nrd_trt.json_files", "nrd_trt.model.mmseg", "nrd_trt.model.pickles"]
_MODULES += ["nrd_trt.serving.access"]
_SECONDS, _MIB = 20, 2048
_MISSING = 77
PARSERS = ("bundle.json", "Host header", "mmseg configuration", "names of a pickle")


@dataclass(frozen=True, kw_only=True)
class Parser:
    """A parser: what it reads, the errors that refuse it, and honest content."""

    read: Callable[[bytes], object]
    refuses: tuple[type[Exception], ...]
    honest: bytes


def _parsers() -> dict[str, Parser]:
    from nrd_trt.engine.bundle import RECORD_FILE
    from nrd_trt.engine.record import read_record
    from nrd_trt.errors import CheckpointError
    from nrd_trt.model.checkpoint import _FOREIGN
    from nrd_trt.model.mmseg import mmseg_facts
    from nrd_trt.model.pickles import _check_names
    from nrd_trt.serving.access import _host_name
    from tests.hostile import seeds
    from tests.hostile.loaders import hashed

    refused_pickles = (CheckpointError, ValueError, EOFError, RuntimeError)
    return {
        "bundle.json": Parser(
            read=lambda content: read_record(hashed(content)),
            refuses=(ValueError,),
            honest=(seeds.tiny_bundle() / RECORD_FILE).read_bytes(),
        ),
        "Host header": Parser(
            read=lambda content: _host_name(content.decode("latin-1")), refuses=(), honest=b"[::1]:8000"
        ),
        "mmseg configuration": Parser(
            read=lambda content: mmseg_facts({"config": content.decode(errors="replace")}),
            refuses=_FOREIGN,
            honest=seeds.CONFIG.encode(),
        ),
        "names of a pickle": Parser(
            read=lambda content: _check_names(io.BytesIO(content)),
            refuses=refused_pickles,
            honest=pickle.dumps({"weight": [1.5, "x", b"y", {1: (2, 3)}]}, protocol=2),
        ),
    }


def main() -> int:
    """Fuzz one parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parser", choices=PARSERS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--found", type=Path, default=Path("build/hostile"), help="where content goes that fails")
    args = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        return _MISSING
    import atheris  # type: ignore[import-not-found]

    with atheris.instrument_imports(include=_MODULES, enable_loader_override=False):
        chosen = _parsers()[args.parser]

    def one(content: bytes) -> None:
        try:
            chosen.read(content)
        except chosen.refuses:
            pass

    args.found.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        (Path(corpus) / "honest").write_bytes(chosen.honest)
        limits = (f"-max_total_time={args.seconds}", f"-timeout={_SECONDS}", f"-rss_limit_mb={_MIB}", "-max_len=65536")
        atheris.Setup([sys.argv[0], *limits, f"-seed={args.seed}", f"-artifact_prefix={args.found}/", corpus], one)
        atheris.Fuzz()  # ends the process
    return 0


def score(parser: str, *, seconds: int, seed: int, found: Path) -> tuple[int, str] | None:
    """Fuzz one parser in a process of its own.

    Args:
        parser: One of `PARSERS`.
        seconds: How long.
        seed: Of the changes.
        found: Folder for content that fails.

    Returns:
        Executions, and what failed, empty if nothing did; None where atheris is not installed.
    """
    words = (parser, "--seconds", str(seconds), "--seed", str(seed), "--found", str(found))
    done = subprocess.run(
        (sys.executable, "-m", "tests.hostile.guided", *words), capture_output=True, text=True, check=False
    )
    if done.returncode == _MISSING:
        return None
    runs = re.search(r"Done (\d+) runs", done.stderr)
    failed = "" if runs and not done.returncode else done.stderr[-600:] or f"ended with {done.returncode}"
    return int(runs[1]) if runs else 0, failed


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
