"""What a bundle, a file or a folder is called reaches the terminal as printable text, and JSON as it is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from nrd_trt.cli.common import Stages, print_json, print_wrapped, say, show_message
from nrd_trt.engine.bundle import ONNX_FILE
from nrd_trt.progress import printable
from tests.artefacts import REPOSITORY, bundle, copy_of, read_facts_of, rewrite_facts
from tests.cli.conftest import Invoke, one_object

HOSTILE = {
    "\x1b[2K\x1b]0;title\x07": r"\x1b[2K\x1b]0;title\x07",  # ESC and BEL: erase the line, name the window
    "NOT\rpassed": r"NOT\rpassed",
    "a\nverdict          passed": r"a\nverdict          passed",
    "\u202egnp.exe\u2066": r"\u202egnp.exe\u2066",  # bidi controls: letters in another order
    "\x9b31m\x7f\u2028\u200b": r"\x9b31m\x7f\u2028\u200b",  # CSI in one character, DEL, a line's end, nothing
    "\udcff": r"\udcff",  # a byte of a file name that is no text
}
PLAIN = "Straße – 街 ±½ 🚗"


@pytest.mark.parametrize("text", HOSTILE)
def test_one_line_stays_one_line_of_printable_text(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert printable(f"{PLAIN}{text}") == f"{PLAIN}{HOSTILE[text]}"
    say(f"{PLAIN}{text}", "next", err=True)
    print_wrapped("  name: ", text)
    Stages(quiet=False)(text)
    show_message("WARNING", text)
    out, err = capsys.readouterr()
    assert err.startswith(f"{PLAIN}{HOSTILE[text]}\nnext\n")
    assert (len(out.splitlines()), len(err.splitlines())) == (1, 4)
    assert all(line.isprintable() for line in [*out.split("\n"), *err.split("\n")])


@pytest.mark.parametrize("text", HOSTILE)
def test_json_is_printable_and_says_the_same(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_json({PLAIN: [text]})
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.split("\n")) and PLAIN in out
    assert json.loads(out) == {PLAIN: [text]}


@pytest.mark.parametrize("text", [text for text in HOSTILE if text.isascii() or text[0] == "\u202e"])
def test_a_bundle_names_its_parts_as_it_likes(text: str, nrd_trt: Invoke, tmp_path: Path) -> None:
    """The command that rebuilds it is what users paste."""
    path = copy_of(bundle(), tmp_path / f"a{text}.nrd")
    facts = read_facts_of(path)
    facts["validation"]["warnings"] = [text]
    facts["checkpoint"]["name"] = text
    facts["command"] = f"nrd-trt build {text}"
    rewrite_facts(path, **facts)
    people = nrd_trt("inspect", path)
    check(people, 0, people.stdout)
    assert printed(HOSTILE[text]) in printed(people.stdout)
    result = nrd_trt("inspect", path, "--json")
    check(result, 0, result.stdout)
    assert one_object(result.stdout)["bundle"]["command"] == facts["command"]
    for verb in ("validate", "benchmark"):
        found = nrd_trt(verb, path, "--threads", 1)
        check(found, 0, found.stdout, found.stderr)
    (path / ONNX_FILE).write_bytes(b"changed")
    result = nrd_trt("inspect", path, "--json")
    check(result, 2, result.stdout, result.stderr)
    assert f"nrd-trt build {HOSTILE[text]}" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def printed(text: str) -> str:
    """Return a text without its blanks, at which lines are broken."""
    return "".join(text.split())


def check(result: Any, code: int, *texts: str) -> None:
    assert result.exit_code == code, result.output
    for text in texts:
        assert not [line for line in text.split("\n") if not line.isprintable()]


def test_verbs_print_by_one_function_only() -> None:
    """`say`, `print_json`, and the version."""
    calls = {
        path.name: re.findall(r"(?<![\w.])(?:typer\.echo|print|sys\.std\w+\.write)\(", path.read_text())
        for path in (REPOSITORY / "nrd_trt/cli").glob("*.py")
    }
    assert {name: len(found) for name, found in calls.items() if found} == {"common.py": 2, "main.py": 1}
