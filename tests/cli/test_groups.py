"""Groups of options, and the flags that stand for the library's parameters."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

import nrd_trt
from nrd_trt.cli.common import verb
from nrd_trt.cli.flags import shell_line, translated
from nrd_trt.cli.groups import (
    BuilderOptions,
    CheckpointFacts,
    FormOptions,
    QuantizationOptions,
    RunnerOptions,
    flattened,
)
from nrd_trt.cli.main import FLAGS, VERBS, app
from nrd_trt.errors import ConfigError
from nrd_trt.runtime.select import RunOptions


@dataclass(frozen=True, kw_only=True)
class Sides:
    """A group as the verbs have them; refuses what is invalid itself."""

    width: Annotated[int, typer.Option("--width", help="Of the image.")] = 3
    names: Annotated[list[str] | None, typer.Option("--name")] = None

    def __post_init__(self) -> None:
        if self.width == 0:
            raise ConfigError("width=0: expected 1 or more.")


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
    got, result = run("a", "--width", "0")
    assert (got, result.exit_code) == ({}, 2)
    assert result.stderr == "error: --width 0: expected 1 or more.\n"


def test_what_was_given_are_arguments_of_the_library() -> None:
    assert QuantizationOptions(seed=0, include=["a"]).given() == {"seed": 0, "include": ["a"]}
    assert CheckpointFacts(bgr=True).given() == {"bgr": True} and CheckpointFacts().given() == {}
    assert FormOptions(output_until_0_1="both").given() == {"outputs": ("mask", "logits")}
    assert FormOptions(output_until_0_1="logits", size=(32, 64)).given() == {"outputs": ("logits",), "size": (32, 64)}
    with pytest.raises(ConfigError, match="--output and --outputs are the same"):
        FormOptions(output_until_0_1="both", outputs=("mask",)).given()


@pytest.mark.parametrize("name", ["build", "calibrate", "evaluate", "export", "tune"])
def test_options_have_the_names_of_the_librarys_parameters(name: str) -> None:
    """Else a message would name what the user of the command line does not know."""
    own = {"as_json", "verbose", "quiet", "output_until_0_1"}
    known = {*inspect.signature(getattr(nrd_trt, name)).parameters, *inspect.signature(CheckpointFacts).parameters}
    assert FLAGS[name].keys() - own <= known
    assert not [flag for flag in FLAGS[name].values() if flag != "-o" and not flag.startswith("--")]
    assert set(inspect.signature(flattened(VERBS[name])).parameters) >= FLAGS[name].keys()


@pytest.mark.parametrize(
    "name", ["batch", "benchmark", "build", "evaluate", "predict", "serve", "tune", "validate", "video"]
)
def test_every_verb_that_runs_a_plan_takes_the_same_options(name: str) -> None:
    function = {"batch": "segment_dataset", "predict": "open_bundle", "video": "segment_video"}.get(name, name)
    known = {field.name for field in fields(RunOptions)} - {"faithful"}  # which verb it is, and no choice of its user
    assert known == {field.name for field in fields(RunnerOptions)}
    assert known <= inspect.signature(getattr(nrd_trt, function)).parameters.keys()
    assert FLAGS[name].items() >= {
        ("runner", "--runner"),
        ("plugin", "--plugin"),
        ("threads", "--threads"),
        ("cuda", "--cuda"),
        ("cuda_graph", "--cuda-graph/--no-cuda-graph"),
        ("device", "--device"),
    }


@pytest.mark.parametrize("name", ["build", "tune"])
def test_builder_options_are_repeated_and_become_one_mapping(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    got: dict[str, Any] = {}
    monkeypatch.setattr(nrd_trt, name, lambda *_, **options: got.update(options) or exit_early())

    def exit_early() -> None:
        raise ConfigError("far enough.")

    words = ["a.pth", "-o", "a.nrd", "--data", "."]
    options = ["--builder-option", "tactic_sources=A,B=C", "--builder-option", "max_aux_streams=2"]
    done = CliRunner().invoke(app, [name, *words, *options])
    assert (done.exit_code, got["builder_options"]) == (2, {"tactic_sources": "A,B=C", "max_aux_streams": "2"})
    done = CliRunner().invoke(app, [name, *words, *options, *options[2:]])
    assert "--builder-option: expected each name once, got max_aux_streams again." in done.output
    assert "builder_options" not in BuilderOptions().given()


def test_what_turns_something_off_is_given() -> None:
    assert RunnerOptions(cuda_graph=False, device=0).given() == {"cuda_graph": False, "device": 0}
    assert RunnerOptions().given() == {}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"runner": "trt"}, "runner='trt': expected one of 'auto', "),
        ({"cuda": "opencl"}, "cuda='opencl': expected one of 'driver', 'pycuda'"),
        ({"threads": 0}, "threads=0: expected a whole number, 1 or more"),
        ({"device": -1}, "device=-1: expected a number from 0 on, or a UUID"),
        ({"device": True}, "device=True: expected a number"),
        ({"device": "cuda:1"}, "device='cuda:1': expected a number from 0 on, or a UUID such as GPU-"),
    ],
)
def test_how_an_engine_is_run_is_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RunOptions(**options)


@pytest.mark.parametrize(
    ("name", "message", "shown"),
    [
        ("train", "leave out device=. Or data=a.b.", "leave out --device. Or --data a.b."),
        ("build", "size=50x48: expected 64x64.", "--size 50x48: expected 64x64."),
        ("build", "size=(50, 48), batch=(1, 2, 8): no.", "--size 50x48, --batch 1:2:8: no."),
        ("build", "dynamic=((1, 2), (3, 4), (5, 6)) is", "--dynamic 1x2:3x4:5x6 is"),
        ("build", "outputs=('mask', 'logits')", "--outputs mask,logits"),
        ("build", "size= and dynamic= exclude each other", "--size and --dynamic exclude each other"),
        ("build", "give force=True, or builder='tensorrt'.", "give --force, or --builder tensorrt."),
        ("build", "builder='a' or 'b' on it's own", "--builder a or b on it's own"),
        ("build", "include='a b': expected", "--include 'a b': expected"),
        ("build", "input_form='nchw', outputs=: fixed", "--input nchw, --outputs: fixed"),
        ("build", "1 name, give class_names=", "1 name, give --classes"),
        ("build", "seed=-1, plugin=/a.so and plugin=../b.so", "--seed -1, --plugin /a.so and --plugin ../b.so"),
        ("build", "x?size=3, a/size=3, a.size=3, -DTENSORRT_ROOT=x", "x?size=3, a/size=3, a.size=3, -DTENSORRT_ROOT=x"),
        ("build", "builder_options=: 'tf32': expected", "--builder-option: 'tf32': expected"),
        ("benchmark", "copies=False: leave it out", "--no-copies: leave it out"),
        ("benchmark", "cuda_graph=True: leave it out", "--cuda-graph: leave it out"),
        ("export", "resize=1 and info.size=2 of builder=x", "resize=1 and info.size=2 of builder=x"),
        ("export", "again with nrd_trt.export. See nrd_trt.specs.", "again with `nrd-trt export`. See nrd_trt.specs."),
        (
            "validate",
            "rebuild with: nrd_trt.build('a (1).nrd', 'a (1).nrd', builder='tensorrt', force=True)",
            "rebuild with: nrd-trt build 'a (1).nrd' -o 'a (1).nrd' --builder tensorrt --force",
        ),
    ],
)
def test_messages_name_flags_where_the_library_names_parameters(name: str, message: str, shown: str) -> None:
    assert translated(message, FLAGS[name]) == shown


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (
            "nrd_trt.build('a b.pth', 'NAME.nrd', dynamic=((1, 2), (3, 4), (5, 6)), bgr=True, labels=None)",
            "nrd-trt build 'a b.pth' -o NAME.nrd --dynamic 1x2:3x4:5x6 --bgr",
        ),
        (
            "nrd_trt.build('a.pth', 'b.nrd', include=('x', '^y$'), mean=(1.0, 2.0, 3.5), class_names=('Sky', 'Car'))",
            "nrd-trt build a.pth -o b.nrd --include x --include '^y$' --mean 1.0,2.0,3.5 --classes FILE",
        ),
        (
            "nrd_trt.build('a.pth', 'b.nrd', size=(64, 96), seed=0)",
            "nrd-trt build a.pth -o b.nrd --size 64x96 --seed 0",
        ),
        (
            "nrd_trt.build('a.pth', 'b.nrd', builder_options={'max_aux_streams': '2', 'tactic_sources': 'A,B'})",
            "nrd-trt build a.pth -o b.nrd --builder-option max_aux_streams=2 --builder-option tactic_sources=A,B",
        ),
        ("nrd_trt.tune('a.pth', 'b.nrd', 'val')", "nrd-trt tune a.pth -o b.nrd --data val"),
        ("nrd_trt.load_model('a.pth')", "nrd_trt.load_model('a.pth')"),
        ("not a call(", "not a call("),
        ("len('abc')", "len('abc')"),
    ],
)
def test_calls_are_written_as_commands(call: str, line: str) -> None:
    assert shell_line(call) == line
