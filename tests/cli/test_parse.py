"""Texts of the command line as values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from nrd_trt.cli.parse import (
    numbers,
    parse_batch,
    parse_dynamic,
    parse_names,
    parse_option,
    parse_size,
    read_class_names,
)


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parse_size, "512x1024", (512, 1024)),
        (parse_size, "32X64", (32, 64)),
        (parse_size, " 96x33 ", (96, 33)),
        (parse_dynamic, "32x64:64x128:96x256", ((32, 64), (64, 128), (96, 256))),
        (parse_batch, "4", 4),
        (parse_batch, "1:2:8", (1, 2, 8)),
        (parse_names, "mask, logits", ("mask", "logits")),
        (parse_option, "tactic_sources=A,B=C", ("tactic_sources", "A,B=C")),
        (numbers(float, 3), "1,2.5,3", (1.0, 2.5, 3.0)),
    ],
)
def test_texts(parse: Callable[[str], Any], text: str, value: Any) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "texts", "message"),
    [
        (
            parse_size,
            ["", "512", "512x", "x512", "512x1024x3", "-32x32", "512*512", "a32x32", "32.0x32"],
            "expected HEIGHTxWIDTH",
        ),
        (parse_dynamic, ["64x64:96x96", "64x64:64x64:64x64:64x64"], "expected MIN:OPT:MAX"),
        (parse_dynamic, ["64x64:96:128x128"], "'96': expected HEIGHTxWIDTH"),
        (parse_batch, ["two", "1:2", "", "1:2:3:4", "-1"], "expected N or MIN:OPT:MAX"),
        (parse_option, ["max_aux_streams", "=2", ""], "expected NAME=VALUE"),
        (numbers(int, 3), ["1,2", "1,2,x", ""], "expected 3 numbers"),
        (read_class_names, ["/absent.txt", str(Path(__file__).parent)], "cannot read it .*one class name per line"),
    ],
)
def test_other_texts_are_refused(parse: Callable[[str], Any], texts: list[str], message: str) -> None:
    for text in texts:
        with pytest.raises(typer.BadParameter, match=message):
            parse(text)


def test_class_names_stand_on_lines(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("Sky\n\n Car \n")
    assert read_class_names(str(tmp_path / "names.txt")) == ("Sky", "Car")
