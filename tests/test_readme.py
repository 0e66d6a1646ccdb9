"""What README.md and docs/ tell people to type exists, links lead somewhere, and figures are the same on every page."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer.main

from nrd_trt.cli.main import VERBS, app
from scripts.dev.compare_decoders import comparison, paired_difference
from tests.artefacts import REPOSITORY, environment
from tests.warm.programs import python

PAGES = sorted([REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("**/*.md")])
CARDS = sorted((REPOSITORY / "nrd_trt/zoo").glob("*.md"))
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def blocks(text: str) -> list[str]:
    return re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def command_lines(text: str) -> list[list[str]]:
    """Return the commands of all blocks as words; comments, prompts, settings and outputs of pipes left out."""
    found = []
    for line in "".join(blocks(text)).replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        for separator, part in itertools.groupby(words, {"|", "&&", ";", ">", "2>"}.__contains__):
            command = list(itertools.dropwhile(re.compile(r"[A-Z_]+=.*").fullmatch, part))
            if command and not separator:
                found.append(command)
    return found


def problems_of(words: list[str]) -> list[str]:
    """Return what a command names that does not exist."""
    program = Path(words[0]).name
    if program == "nrd-trt":
        return verb_problems(words[1:])
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        return [
            f"make {word}" for word in words[1:] if "=" not in word and not word.startswith("-") and word not in targets
        ]
    if program.startswith("python") or words[0].startswith("scripts/"):
        script = next((word for word in words if word.endswith((".py", ".sh"))), None)
        if script is None:
            return []
        if not (REPOSITORY / script).is_file():
            return [script]
        door = re.search(r'run_verb\("(\w+)"\)', (REPOSITORY / script).read_text())
        return verb_problems([door[1], *words[words.index(script) + 1 :]]) if door else []
    return []


def verb_problems(words: list[str]) -> list[str]:
    if words[0].startswith("-"):
        return [] if words[0] in ("--help", "--version") else [words[0]]
    if words[0] not in VERBS:
        return [f"verb {words[0]}"]
    parameters = COMMANDS[words[0]].params
    known = {option for given in parameters for option in (*given.opts, *given.secondary_opts)} | {"--help"}
    flags = [word.split("=")[0] for word in words[1:] if re.match(r"--?[A-Za-z]", word)]
    return [f"{words[0]} {flag}" for flag in flags if flag not in known]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_exist(page: Path) -> None:
    commands = command_lines(page.read_text())
    problems = [f"{shlex.join(words)}: {problem}" for words in commands for problem in problems_of(words)]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_relative_links_resolve(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)(?:\s[^)]*)?\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    relative = [link for link in links if not re.match(r"[a-z]+:|#", link)]
    broken = [link for link in relative if not (page.parent / link.split("#")[0]).exists()]
    assert not broken


def test_readme_shows_the_main_job() -> None:
    commands = command_lines((REPOSITORY / "README.md").read_text())
    assert any("build" in words for words in commands)
    assert ["make", "demo"] in [words[:2] for words in commands]


def test_the_python_example_runs_without_the_command_line(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", (REPOSITORY / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert all(f"nrd_trt.{function}(" in example for function in ("build", "open_bundle", "validate"))
    check = "import sys\nassert mask.shape == (360, 480) and 'nrd_trt.cli' not in sys.modules"
    command = [python(), "-c", f"{example}\n{check}"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "street.nrd/bundle.json").is_file()


def test_mistakes_are_found() -> None:
    """The checks above, on a page that is wrong throughout."""
    page = """
```bash
nrd-trt build a.pth -o a.nrd \\
  --precison fp16   # a typing mistake
NRD_TRT_CAMVID=x make demmo
.venv/bin/python scripts/absent.py
$ nrd-trt fly && .venv/bin/nrd-trt export a.pth -o b.onnx --dynamic 1:2:3
.venv/bin/python scripts/validate.py a.nrd --json --chekpoint b
```
"""
    found = [problem for words in command_lines(page) for problem in problems_of(words)]
    assert found == ["build --precison", "make demmo", "scripts/absent.py", "verb fly", "validate --chekpoint"]


@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.stem)
def test_cards_are_of_the_template_and_the_pages_repeat_their_figures(card: Path) -> None:
    text, template = card.read_text(), (REPOSITORY / "scripts/dev/zoo_card.md.j2").read_text()
    assert [line for line in template.splitlines() if "{" not in line and line not in text] == []
    ((test, accuracy),) = re.findall(r"^\| \*\*test\*\* \| 233 \| \*\*([\d.]+)\*\* \| ([\d.]+) \|", text, re.MULTILINE)
    (int8,) = re.findall(r"^\| test, in int8 \| 233 \| [\d.]+ \(([+-][\d.]+)\) \|", text, re.MULTILINE)
    (validation,) = re.findall(r"^\| validation \| 101 \| ([\d.]+) \|", text, re.MULTILINE)
    assert f"**CamVid test frames: mIoU {test}, pixel accuracy {accuracy}**" in text
    for page in ("README.md", "docs/results.md"):
        (row,) = re.findall(rf"^\| [^|]*`{card.stem}`.*", (REPOSITORY / page).read_text(), re.MULTILINE)
        cells = [cell.strip(" *") for cell in row.replace("\u2212", "-").split("|")]
        assert cells[2:5] == [test, int8, validation], page


def test_differences_of_decoders_follow_from_the_scores_in_the_table() -> None:
    page = (REPOSITORY / "docs/results.md").read_text().replace("\u2212", "-")
    rows = re.findall(r"^\| ([\w+]+) \| [\d.]+ ± [\d.]+ \(([\d., ]+)\) \|", page, re.MULTILINE)
    scores = {name: [float(score) for score in column.split(", ")] for name, column in rows}
    assert len(scores) == 3
    for one, other in itertools.combinations(scores, 2):
        mean, margin = paired_difference(scores[one], scores[other])
        assert f"| {one} - {other} | {mean:+.3f} ± {margin:.3f} |" in page


def test_paired_differences_know_what_they_cannot_tell() -> None:
    scores = {"a": (0.5, 0.6, 0.9), "b": (0.4, 0.7, 0.5), "c": (0.3, 0.41, 0.7)}
    verdict = "these seeds do not tell them apart"
    assert comparison("a", "b", scores) == f"a - b: +0.133 ± 0.625 (95 %, 3 seeds, paired): {verdict}"
    assert comparison("a", "c", scores) == "a - c: +0.197 ± 0.014 (95 %, 3 seeds, paired)"
    many = [0.0, 1.0] * 6  # more than the table of quantiles has; the standard deviation is the root of 3 / 11
    assert paired_difference(many, [0.0] * 12) == pytest.approx((0.5, 2.262 * (3 / 11 / 12) ** 0.5))
