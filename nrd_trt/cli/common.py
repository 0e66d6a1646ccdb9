"""What every verb shares: options, exit codes, and where output goes.

Exit codes: 0 done, 1 a gate failed, 2 bad input or environment, 70 internal error, 130 Ctrl-C. With ``--json`` stdout
is exactly one JSON object; everything else goes to stderr.
"""

from __future__ import annotations

import functools
import json
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from nrd_trt.cli.flags import flags_of, translated
from nrd_trt.errors import ConfigError, NrdTrtError
from nrd_trt.specs import BuilderName, Fit, RunnerName

GATE_FAILED, BAD_INPUT, INTERNAL_ERROR, INTERRUPTED = 1, 2, 70, 130

Command = TypeVar("Command", bound=Callable[..., None])


def verb(command: Command) -> Command:
    """Turn the exceptions of a verb into messages and exit codes."""
    flags = flags_of(command)

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        warnings.showwarning = functools.partial(_show_warning, flags)
        as_json = bool(kwargs.get("as_json"))
        try:
            command(*args, **kwargs)
        except NrdTrtError as exc:
            _fail(type(exc).__name__, translated(str(exc), flags), BAD_INPUT, as_json)
        except KeyboardInterrupt:
            _fail("Interrupted", "stopped by Ctrl-C; no output is half-written under its name", INTERRUPTED, as_json)
        except typer.Exit:
            raise
        except OSError as exc:
            _fail(type(exc).__name__, f"{exc}; check the path, its permissions and the free space", BAD_INPUT, as_json)
        except Exception as exc:
            if kwargs.get("verbose"):
                traceback.print_exc()
            message = f"internal error: {type(exc).__name__}: {exc} (please report it; -v prints the traceback)"
            _fail(type(exc).__name__, message, INTERNAL_ERROR, as_json)

    return guarded  # type: ignore[return-value]


def print_json(data: Any) -> None:
    """Print the one JSON object of a verb."""
    typer.echo(json.dumps(data, indent=1, ensure_ascii=False))


def note(text: str, *, quiet: bool = False) -> None:
    """Print one line of progress to stderr."""
    if not quiet:
        typer.echo(text, err=True)


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


def print_kept(kept: Mapping[str, str]) -> None:
    """Print the nodes that stay in fp32, each with its reason."""
    if kept:
        typer.echo("kept in fp32 for their range:")
    for name, reason in kept.items():
        typer.echo(f"  {name}: {reason}")


def reference_name(reference: str) -> str:
    """Name what masks were compared with, for people."""
    return {"torch": "PyTorch", "onnx": "the fp32 ONNX file", "stored": "the stored masks"}[reference]


def fraction(value: float | None) -> str:
    """Format a figure in 0-1 for people."""
    return "–" if value is None else f"{value:.4f}"


def _fail(kind: str, message: str, code: int, as_json: bool) -> None:
    typer.echo(f"error: {message}", err=True)
    if as_json:
        print_json({"error": {"type": kind, "message": message}})
    raise typer.Exit(code)


def _show_warning(
    flags: Mapping[str, str],
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    """Show our own warnings as one line; those of libraries speak to developers, not to users."""
    if category is UserWarning and not {"nrd_trt", "calibration"}.isdisjoint(Path(filename).parts):
        print(f"warning: {translated(str(message), flags)}", file=sys.stderr)


# --- options ---------------------------------------------------------------------------------------------------------

Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Show TensorRT's messages and tracebacks.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress on stderr.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, metavar="N", help="CPU threads.")]

PrecisionOption = Annotated[
    str | None,
    typer.Option("--precision", metavar="fp32|fp16|bf16|int8", help="Types of the graph; int8 only to build."),
]
Size = Annotated[str | None, typer.Option("--size", metavar="HxW", help="Fixed size, multiples of 32.")]
Data = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="Images, or a folder with images/ and labels/.")
]
Labels = Annotated[Path | None, typer.Option("--labels", metavar="DIR", help="Index PNGs, paired by name.")]
IgnoreIndex = Annotated[
    int | None, typer.Option("--ignore-index", min=0, max=255, help="Label value to ignore besides 255.")
]
FitOption = Annotated[Fit | None, typer.Option("--fit", help="How images are brought to the engine's size.")]
Runner = Annotated[
    RunnerName, typer.Option("--runner", metavar="NAME", help="auto, torch, onnxruntime, tensorrt or tensorrt-rtx.")
]
Builder = Annotated[
    BuilderName, typer.Option("--builder", metavar="NAME", help="auto, tensorrt, tensorrt-rtx or onnxruntime.")
]
Dilations = Annotated[
    str | None, typer.Option("--dilations", metavar="A,B,C,D", help="Of ASPP (default for NRD 1,3,6,9).")
]
OutputStride = Annotated[
    int | None, typer.Option("--output-stride", help="Of the encoder: 32, or 16 or 8 where it is dilated.")
]
Plugin = Annotated[
    Path | None,
    typer.Option(
        "--plugin", metavar="FILE", help="Plugin library (default NRD_TRT_PLUGIN, plugins/build, the loader's path)."
    ),
]
MinAgreement = Annotated[
    float | None, typer.Option("--min-agreement", metavar="0-1", help="Gate: share of equal pixels.")
]
MaxMiouDrop = Annotated[
    float | None, typer.Option("--max-miou-drop", metavar="0-1", help="Gate: loss of mIoU against labels.")
]


def choice(flag: str, value: str | None, allowed: tuple[str, ...]) -> Any:
    """Return `value` if it is None or allowed, else raise `ConfigError`."""
    if value is not None and value not in allowed:
        raise ConfigError(f"{flag} {value!r}: expected one of {', '.join(allowed)}.")
    return value
