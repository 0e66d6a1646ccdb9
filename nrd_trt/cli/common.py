"""What every verb shares: options, exit codes, and where output goes.

Exit codes: 0 done, 1 a gate failed, 2 bad input or environment, 70 internal error, 130 Ctrl-C or SIGTERM. With
``--json`` stdout is exactly one JSON object; everything else goes to stderr.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import re
import shutil
import signal
import sys
import textwrap
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from nrd_trt.cli import parse
from nrd_trt.cli.flags import flags_of, translated
from nrd_trt.errors import NrdTrtError
from nrd_trt.progress import printable
from nrd_trt.specs import BuilderName, Fit, Precision, Resample

if TYPE_CHECKING:
    from nrd_trt.figures import MaskFigures, StructureRecord
    from nrd_trt.gates import Gates, NamedFigure

GATE_FAILED, BAD_INPUT, INTERNAL_ERROR, INTERRUPTED = 1, 2, 70, 130
_WIDEST = 100
MARKED = "the bundle is kept and marked as not passed"

# Options by the panel of the help that they stand in.
model_option, input_option, precision_option, engine_option, checks_option, output_option = (
    functools.partial(typer.Option, rich_help_panel=panel)
    for panel in ("Model", "Input", "Precision", "Engine", "Checks", "Output")
)

Command = TypeVar("Command", bound=Callable[..., None])
_flags: dict[str, str] = {}  # of the verb that runs: there is one per process


def verb(command: Command) -> Command:
    """Turn the exceptions of a verb into messages and exit codes."""
    flags = flags_of(command)

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        _flags.clear()
        _flags.update(flags)
        warnings.showwarning = _show_warning
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service manager's stop ends like Ctrl-C
        as_json = bool(kwargs.get("as_json"))
        code = BAD_INPUT
        try:
            return command(*args, **kwargs)
        except typer.Exit:
            raise
        except NrdTrtError as exc:
            kind, message = type(exc).__name__, str(exc)
        except KeyboardInterrupt:
            kind, message = "Interrupted", "stopped by Ctrl-C or SIGTERM; no output is half-written under its name"
            code = INTERRUPTED
        except OSError as exc:
            kind, message = type(exc).__name__, f"{exc}; check the path, its permissions and the free space"
        except Exception as exc:
            if kwargs.get("verbose"):
                say(*traceback.format_exc().splitlines(), err=True)
            kind, code = type(exc).__name__, INTERNAL_ERROR
            message = f"internal error: {kind}: {exc} (please report it; -v prints the traceback)"
        report(kind, translated(message, flags), as_json=as_json)
        raise typer.Exit(code)

    return guarded  # type: ignore[return-value]


def say(*lines: str, err: bool = False) -> None:
    """Print lines on stdout or stderr, the only way that a verb prints text: see `printable`."""
    typer.echo("\n".join(map(printable, lines)), err=err)


def show_message(level: str, text: str) -> None:
    """Print one TensorRT message on stderr."""
    say(f"[TensorRT {level.lower()}] {text}", err=True)


def report(kind: str, message: str, *, as_json: bool) -> None:
    """Print an error on stderr, and with ``--json`` as the one object on stdout."""
    say(f"error: {message}", err=True)
    if as_json:
        print_json({"error": {"type": kind, "message": message}})


def exit_on(failures: Sequence[str], consequence: str | None = None) -> None:
    """Raise `typer.Exit` where a gate failed, and say which, a line for each, and what follows."""
    if failures:
        for failure in failures:
            note(f"gate failed: {failure}")
        if consequence:
            note(consequence)
        raise typer.Exit(GATE_FAILED)


def print_json(data: Any) -> None:
    """Print the one JSON object of a verb."""
    text = json.dumps(data, indent=1, ensure_ascii=False)
    typer.echo(re.sub(r"[^\n -~]", lambda found: _in_json(found[0]), text))


def _in_json(char: str) -> str:
    return char if char.isprintable() else json.dumps(char)[1:-1]


@contextmanager
def prints_on_stderr() -> Iterator[None]:
    """Let stderr have what libraries print on stdout from any thread meanwhile, C and C++ included."""
    if sys.__stdout__ is None or sys.__stderr__ is None:  # closed: nothing to keep apart
        yield
        return
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        ctypes.CDLL(None).fflush(None)  # C keeps back what goes to a pipe
        os.dup2(stdout, 1)
        os.close(stdout)


def print_wrapped(before: str, text: str) -> None:
    """Print a text beside what stands before it, broken at blanks only, so that commands and paths can be copied."""
    width = max(60, min(_WIDEST, shutil.get_terminal_size((_WIDEST, 24)).columns))
    rest = " " * len(before)
    wrapper = textwrap.TextWrapper(width, before, rest, break_long_words=False, break_on_hyphens=False)
    say(*wrapper.wrap(text) or [""])


def note(text: str, *, quiet: bool = False) -> None:
    """Print one line of progress to stderr."""
    if not quiet:
        say(translated(text, _flags), err=True)


class Stages:
    """Announces the stages of a long verb on stderr and how long each took."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._started: float | None = None

    def __call__(self, text: str) -> None:
        """Begin a stage; the one before it ends."""
        self.end()
        note(text, quiet=self._quiet)
        self._started = time.perf_counter()

    def end(self) -> None:
        """End the last stage."""
        if self._started is not None:
            note(f"  {time.perf_counter() - self._started:.1f} s", quiet=self._quiet)
        self._started = None


def kept_lines(kept: Mapping[str, str]) -> list[str]:
    """Return lines on the nodes that stay in fp32, each with its reason."""
    return ["kept in fp32 for their range:"] * bool(kept) + [f"  {name}: {reason}" for name, reason in kept.items()]


def reference_name(reference: str) -> str:
    """Name what masks were compared with, in words."""
    return {"torch": "PyTorch", "onnx": "the fp32 ONNX file", "stored": "the stored masks"}[reference]


def run_by(runner: str, arithmetic: str, plan_ran: bool | None) -> str:
    """Say what ran, and whether a plan did; None where there is no plan."""
    plan = {True: "; the plan ran", False: "; the plan was built but not run here", None: ""}[plan_ran]
    return f"{runner}, {arithmetic} arithmetic{plan}"


def headline(warnings: Sequence[str]) -> list[str]:
    """Return the lines that stand above everything else: what speaks against the figures."""
    return [f"WARNING: {line}" for line in as_typed(warnings)]


def as_typed(lines: Sequence[str]) -> list[str]:
    """Return lines of the library with flags in the place of its parameters."""
    return [translated(line, _flags) for line in lines]


def finer_gates(found: MaskFigures, gates: Gates) -> list[tuple[str, str]]:
    """Return the figures beside agreement and mIoU that are gated, by what they are; those that there are."""
    figures = (
        ("agreement near borders", found.border_agreement, gates.min_border_agreement, "at least"),
        ("lowest IoU of a class", found.class_iou, gates.min_class_iou, "at least"),
        ("largest drop of a class", found.class_drop, gates.max_class_drop, "at most"),
        (
            f"boundary F within {found.boundary_tolerance_px} px",
            found.boundary_between,
            gates.min_boundary_f,
            "at least",
        ),
        ("mean difference of the confidence", found.confidence_difference, gates.max_confidence_difference, "at most"),
    )
    return [
        (name, f"{_named(figure)} (gate: {'none recorded' if gate is None else f'{bound} {gate:g}'})")
        for name, figure, gate, bound in figures
        if figure is not None
    ]


def structure_line(found: StructureRecord) -> str:
    """Say what the file was compared with, and how it came out."""
    if not found.checked and found.not_provable:
        return f"not compared with the checkpoint: {found.not_provable[0]}"
    how = "node by node with a file derived anew" if found.compared == "whole" else "layer by layer with the checkpoint"
    counted = ", ".join(f"{count} {name}" for name, count in sorted(found.checked.items()))
    count = found.found
    return f"{count} difference{'s' * (count != 1)}, compared {how} ({counted})"


def _named(figure: float | NamedFigure) -> str:
    """Format a figure, with its class where it has one."""
    return f"{fraction(figure[1])} {figure[0]}" if isinstance(figure, tuple) else fraction(figure)


def fraction(value: float | None) -> str:
    """Format a figure in 0-1 with as many digits as one reads."""
    return "–" if value is None else f"{value:.4f}"


def _show_warning(message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:
    """Show our own warnings as one line; those of libraries speak to developers, not to users."""
    if category is UserWarning and not {"nrd_trt", "calibration"}.isdisjoint(Path(filename).parts):
        say(f"warning: {translated(str(message), _flags)}", err=True)


# --- options ---------------------------------------------------------------------------------------------------------
# The flag is written out where it is not the parameter's name, and where it turns something on.

Verbose = Annotated[bool, output_option("-v", "--verbose", help="Show TensorRT's messages and tracebacks.")]
Quiet = Annotated[bool, output_option("-q", "--quiet", help="No progress on stderr.")]
Force = Annotated[bool, output_option("--force", help="Replace an existing output.")]
Threads = Annotated[int | None, engine_option(min=1, metavar="N", help="CPU threads.")]
PrecisionOption = Annotated[Precision | None, precision_option(help="Types of the graph.")]
Size = Annotated[Any, input_option(metavar="HxW", parser=parse.parse_size, help="Size of the input, multiples of 32.")]
Data = Annotated[Path | None, input_option(metavar="DIR", help="Images, or a folder with images/ and labels/.")]
FitOption = Annotated[Fit | None, input_option(help="How images are brought to the engine's size.")]
ResampleOption = Annotated[Resample | None, input_option(help="Whose bilinear arithmetic scales them.")]
Builder = Annotated[BuilderName, engine_option(help="What builds; auto takes the TensorRT that is installed.")]
Dilations = Annotated[
    Any,
    model_option(metavar="A,B,C,D", parser=parse.numbers(int, 4), help="Dilations of ASPP (default for NRD 1,3,6,9)."),
]
OutputStride = Annotated[int | None, model_option(help="Stride of the encoder: 32, or 16 or 8 where it is dilated.")]
Plugin = Annotated[
    Path | None,
    engine_option(metavar="FILE", help="Plugin library (default NRD_TRT_PLUGIN, plugins/build, the loader's path)."),
]
VerifyKey = Annotated[
    Path | None,
    checks_option(metavar="FILE", help="Public key that must have signed the bundle (see `nrd-trt sign`)."),
]
MinAgreement = Annotated[float | None, checks_option(metavar="0-1", help="Gate: share of equal pixels.")]
MaxMiouDrop = Annotated[float | None, checks_option(metavar="0-1", help="Gate: loss of mIoU against labels.")]
MinClassIou = Annotated[
    float | None,
    checks_option(metavar="0-1", help="Gate: lowest IoU with the reference, classes from 1 % of pixels on."),
]
MaxClassDrop = Annotated[
    float | None,
    checks_option(metavar="0-1", help="Gate: loss of a class's IoU against labels, from 1 % of pixels on."),
]
MinBorderAgreement = Annotated[
    float | None, checks_option(metavar="0-1", help="Gate: share of equal pixels near borders.")
]
MinBoundaryF = Annotated[float | None, checks_option(metavar="0-1", help="Gate: boundary F-score with the reference.")]
