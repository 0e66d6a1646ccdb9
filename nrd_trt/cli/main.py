"""The command ``nrd-trt``: the verbs and their order."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

import nrd_trt
from nrd_trt.cli.common import report, verb
from nrd_trt.cli.flags import flags_of
from nrd_trt.cli.groups import flattened


class _Verbs(TyperGroup):
    """The verbs, whose usage errors look like all others."""

    def main(self, args: Sequence[str] | None = None, *_: Any, **extra: Any) -> NoReturn:
        """Run the command line and exit; with ``--json`` a usage error is one object on stdout, too."""
        words = sys.argv[1:] if args is None else list(args)
        try:
            code = super().main(words, **{**extra, "prog_name": "nrd-trt", "standalone_mode": False})
        except typer.TyperException as exc:
            code = exc.exit_code
            if words:  # else the help was printed
                report("ConfigError", _usage_error(exc), as_json="--json" in words)
        raise SystemExit(code or 0)


def _usage_error(exc: typer.TyperException) -> str:
    """Return what is wrong with a command line in the words of the library's errors."""
    parameter, context = getattr(exc, "param", None), getattr(exc, "ctx", None)
    if parameter is None or not exc.message:
        place = context.command_path if context else "nrd-trt"
        return f"{exc.format_message().rstrip('.')}; `{place} --help` lists what there is."
    name = max(parameter.opts, key=len) if parameter.param_type_name == "option" else parameter.human_readable_name
    value, choice, known = exc.message.removeprefix("Value error, ").partition(" is not one of ")
    message = f"{value}: expected one of {known.replace(chr(39), '')}" if choice else value
    return f"{name} {message}" if value.startswith("'") else f"{name}: {message}"


app = typer.Typer(
    name="nrd-trt",
    cls=_Verbs,
    help="From a trained PyTorch NRD segmentation network to a checked TensorRT engine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
_NAMES = (
    *("doctor", "selftest", "train", "prune", "evaluate", "complexity", "export", "calibrate", "build", "inspect"),
    *("validate", "sign", "predict", "benchmark", "tune", "optimize", "video", "serve", "batch", "package"),
)
VERBS: dict[str, Callable[..., None]] = {
    name: getattr(import_module(f"nrd_trt.cli.{name}"), f"{name}_command") for name in _NAMES
}
FLAGS = {name: flags_of(flattened(command)) for name, command in VERBS.items()}
for name, command in VERBS.items():
    app.command(name)(verb(flattened(command)))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(nrd_trt.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """From a trained PyTorch NRD segmentation network to a checked TensorRT engine."""


def main() -> None:
    """Run the command line."""
    app()


def run_verb(name: str) -> None:
    """Run one verb with the arguments of this process; what the scripts in ``scripts/`` do."""
    app([name, *sys.argv[1:]])
