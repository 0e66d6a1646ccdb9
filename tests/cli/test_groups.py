"""Groups of options: what Typer sees of a verb that takes one, and what the verb gets."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from nrd_trt.cli.common import verb
from nrd_trt.cli.flags import flags_of, translated
from nrd_trt.cli.groups import CheckpointFacts, flattened
from nrd_trt.cli.main import VERBS
from nrd_trt.cli.quantization import QuantizationOptions
from nrd_trt.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Sides:
    """A group as the verbs have them; refuses what is invalid itself."""

    width: Annotated[int, typer.Option("--width", help="Of the image.")] = 3
    names: Annotated[list[str] | None, typer.Option("--name")] = None

    def __post_init__(self) -> None:
        if self.width == 0:
            raise ConfigError("--width 0: expected 1 or more.")


def run(*arguments: str) -> tuple[dict[str, Any], Any]:
    """Run a verb with a group in its middle; return what it got and the result."""
    got: dict[str, Any] = {}

    def command(
        *,
        source: Annotated[Path, typer.Argument()],
        first: Annotated[str | None, typer.Option("--first")] = None,
        sides: Sides,
        last: Annotated[bool, typer.Option("--last")] = False,
    ) -> None:
        """Do it."""
        got.update(source=source, first=first, sides=sides, last=last)

    app = typer.Typer(add_completion=False)
    app.command()(verb(flattened(command)))
    return got, CliRunner().invoke(app, list(arguments))


def test_the_options_of_a_group_stand_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    text = run("--help")[1].stdout
    assert "Do it." in text and "Of the image." in text and "[default: 3]" in text
    places = [text.index(f"--{name} ") for name in ("first", "width", "name", "last")]
    assert places == sorted(places)
    assert "--sides" not in text


def test_the_verb_gets_the_group() -> None:
    assert run("a")[0] == {"source": Path("a"), "first": None, "sides": Sides(), "last": False}
    got, result = run("a", "--width", "5", "--name", "x", "--name", "y", "--last")
    assert result.exit_code == 0
    assert (got["sides"], got["last"]) == (Sides(width=5, names=["x", "y"]), True)
    assert run("a", "--width", "five")[1].exit_code == 2


def test_what_a_group_refuses_is_an_error_of_the_verb() -> None:
    got, result = run("a", "--width", "0")
    assert (got, result.exit_code) == ({}, 2)
    assert result.stderr == "error: --width 0: expected 1 or more.\n"


def test_verbs_that_read_a_checkpoint_share_its_facts() -> None:
    names = list(inspect.signature(flattened(VERBS["build"])).parameters)
    for group in (CheckpointFacts, QuantizationOptions):
        wanted = list(inspect.signature(group).parameters)
        assert names[names.index(wanted[0]) :][: len(wanted)] == wanted
    for name in ("export", "calibrate", "tune"):
        assert set(inspect.signature(CheckpointFacts).parameters) < set(
            inspect.signature(flattened(VERBS[name])).parameters
        )


@pytest.mark.parametrize(
    ("verb", "message", "shown"),
    [
        ("train", "leave out device=. Or data=a.b.", "leave out --device. Or --data a.b."),
        ("build", "size=50x48: expected 64x64.", "--size 50x48: expected 64x64."),
        ("build", "size= and dynamic= exclude each other", "--size and --dynamic exclude each other"),
        ("build", "give force=True, or builder='tensorrt'.", "give --force, or --builder tensorrt."),
        ("build", "input_form='nchw', output=: fixed", "--input nchw, --output: fixed"),
        ("build", "1 name, give class_names=", "1 name, give --classes"),
        ("benchmark", "copies=False: leave it out", "--no-copies: leave it out"),
        ("benchmark", "cuda_graph=True: leave it out", "--cuda-graph: leave it out"),
        ("export", "resize=1 and info.size=2 of builder=x", "resize=1 and info.size=2 of builder=x"),
    ],
)
def test_messages_name_flags_where_the_library_names_parameters(verb: str, message: str, shown: str) -> None:
    assert translated(message, flags_of(flattened(VERBS[verb]))) == shown
