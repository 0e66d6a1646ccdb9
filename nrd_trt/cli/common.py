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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from nrd_trt.errors import ConfigError, NrdTrtError
from nrd_trt.model import require_torch
from nrd_trt.specs import MASK_ENCODINGS

if TYPE_CHECKING:
    from nrd_trt.model.recognise import CheckpointOptions
    from nrd_trt.pipeline.request import FormRequest
    from nrd_trt.specs import Fit

GATE_FAILED, BAD_INPUT, INTERNAL_ERROR, INTERRUPTED = 1, 2, 70, 130

Command = TypeVar("Command", bound=Callable[..., None])


def verb(command: Command) -> Command:
    """Turn the exceptions of a verb into messages and exit codes."""

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        warnings.showwarning = _show_warning
        as_json = bool(kwargs.get("as_json"))
        try:
            command(*args, **kwargs)
        except NrdTrtError as exc:
            _fail(type(exc).__name__, str(exc), BAD_INPUT, as_json)
        except KeyboardInterrupt:
            _fail("Interrupted", "stopped by Ctrl-C; nothing is half-written", INTERRUPTED, as_json)
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
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    """Show our own warnings as one line; those of libraries speak to developers, not to users."""
    if category is UserWarning and not {"nrd_trt", "calibration"}.isdisjoint(Path(filename).parts):
        print(f"warning: {message}", file=sys.stderr)


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
InputOption = Annotated[
    str | None,
    typer.Option(
        "--input", metavar="uint8|float", help="uint8: NHWC RGB, normalised in the graph (default); float: NCHW."
    ),
]
OutputForm = Annotated[
    str | None, typer.Option("--output", metavar="mask|logits|both", help="Outputs of the graph (default mask).")
]
MaskEncodingOption = Annotated[
    str | None,
    typer.Option(
        "--mask-encoding",
        metavar="uint8|u8x4",
        help="u8x4: four pixels in one int32, for the runners of nrd_trt only (default uint8).",
    ),
]
Size = Annotated[str | None, typer.Option("--size", metavar="HxW", help="Fixed size, multiples of 32.")]
Dynamic = Annotated[
    str | None, typer.Option("--dynamic", metavar="MIN:OPT:MAX", help="Range of sizes, each HxW in multiples of 32.")
]
Batch = Annotated[str | None, typer.Option("--batch", metavar="N|MIN:OPT:MAX", help="Batch size (default 1).")]
Data = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="Images, or a folder with images/ and labels/.")
]
Labels = Annotated[Path | None, typer.Option("--labels", metavar="DIR", help="Index PNGs, paired by name.")]
IgnoreIndex = Annotated[
    int | None, typer.Option("--ignore-index", min=0, max=255, help="Label value to ignore besides 255.")
]
FitOption = Annotated[
    str | None, typer.Option("--fit", metavar="resize|pad|letterbox", help="How images get the engine's size.")
]
Runner = Annotated[
    str, typer.Option("--runner", metavar="NAME", help="auto, torch, onnxruntime, tensorrt or tensorrt-rtx.")
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

# Facts about a checkpoint that the file may not carry.
NumClasses = Annotated[
    int | None, typer.Option("--num-classes", min=2, max=256, help="K, where the file does not tell.")
]
Hidden = Annotated[int | None, typer.Option("--hidden", min=1, help="d, width of the per-patch perceptron.")]
Patch = Annotated[int | None, typer.Option("--patch", min=1, help="f, side of a patch (default 8).")]
Dilations = Annotated[
    str | None, typer.Option("--dilations", metavar="A,B,C,D", help="Of ASPP (default for NRD 1,3,6,9).")
]
OutputStride = Annotated[
    int | None, typer.Option("--output-stride", help="Of the encoder: 32, or 16 or 8 where it is dilated.")
]
Classes = Annotated[Path | None, typer.Option("--classes", metavar="FILE", help="Text file, one class name per line.")]
Mean = Annotated[str | None, typer.Option("--mean", metavar="R,G,B", help="In 0-255 (default ImageNet's).")]
Std = Annotated[str | None, typer.Option("--std", metavar="R,G,B", help="In 0-255 (default ImageNet's).")]
Bgr = Annotated[bool, typer.Option("--bgr", help="The network reads BGR; mean and std are in that order.")]


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """The options above as they were typed."""

    num_classes: int | None = None
    hidden: int | None = None
    patch: int | None = None
    dilations: str | None = None
    output_stride: int | None = None
    classes: Path | None = None
    mean: str | None = None
    std: str | None = None
    bgr: bool = False

    def options(self) -> CheckpointOptions | None:
        """Return them parsed, or None where none was given (so that no PyTorch is needed to say so)."""
        if not any(value not in (None, False) for value in vars(self).values()):
            return None
        require_torch("reading checkpoints")
        from nrd_trt.model.recognise import CheckpointOptions

        return CheckpointOptions(
            num_classes=self.num_classes,
            hidden=self.hidden,
            patch=self.patch,
            dilations=_numbers("--dilations", self.dilations, int, 4),
            output_stride=self.output_stride,
            class_names=_class_names(self.classes),
            mean=_numbers("--mean", self.mean, float, 3),
            std=_numbers("--std", self.std, float, 3),
            bgr=True if self.bgr else None,
        )


def form_request(
    *,
    input_form: str | None,
    output: str | None,
    mask_encoding: str | None,
    size: str | None,
    dynamic: str | None,
    batch: str | None,
) -> FormRequest:
    """Collect the form of the exported file."""
    from nrd_trt.pipeline.request import FormRequest

    return FormRequest(
        input_form=choice("--input", input_form, ("uint8", "float")),
        output=choice("--output", output, ("mask", "logits", "both")),
        mask_encoding=choice("--mask-encoding", mask_encoding, MASK_ENCODINGS),
        size=size,
        dynamic=dynamic,
        batch=batch,
    )


def fit_choice(fit: str | None) -> Fit | None:
    """Check ``--fit``."""
    return choice("--fit", fit, ("resize", "pad", "letterbox"))  # type: ignore[no-any-return]


def choice(flag: str, value: str | None, allowed: tuple[str, ...]) -> Any:
    """Return `value` if it is None or allowed, else raise `ConfigError`."""
    if value is not None and value not in allowed:
        raise ConfigError(f"{flag} {value!r}: expected one of {', '.join(allowed)}.")
    return value


def _numbers(flag: str, text: str | None, kind: Callable[[str], Any], count: int) -> Any:
    if text is None:
        return None
    try:
        values = tuple(kind(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != count:
        raise ConfigError(f"{flag} {text!r}: expected {count} numbers separated by commas.")
    return values


def _class_names(path: Path | None) -> tuple[str, ...] | None:
    if path is None:
        return None
    try:
        return tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"--classes {path}: cannot read it ({exc}); expected one class name per line.") from exc
