"""What a self-test adds up to, the page, the names that are taken out, and the matrix that is made of reports."""

from __future__ import annotations

import json
import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest

from nrd_trt.machine.findings import Row
from nrd_trt.proving import report
from nrd_trt.proving.record import RUNS, PartResult, Result, SelfTest
from nrd_trt.proving.report import cleaner, render_report, write_report
from nrd_trt.specs import PRECISIONS
from scripts.dev.selftest_matrix import PAGE, REPORTS, STATUS, filled, matrix_rows
from tests.artefacts import REPOSITORY

COLUMNS = (*PRECISIONS, *RUNS)


def passed(name: str, **figures: float | str) -> PartResult:
    return PartResult(name=name, result="passed", seconds=1.5, figures=figures)


def self_test(
    changes: dict[str, Result] | None = None, lanes: tuple[str, ...] = ("tensorrt/small/function",)
) -> SelfTest:
    """A run on which all passed, but for the changes."""
    driver = passed("driver", gpu="NVIDIA H100", compute_capability="9.0", driver="580.65")
    parts = [driver, passed("tensorrt", version="10.3.0"), passed("operator", checked_kernels=40)]
    parts += [passed(f"{lane}/{column}", pixel_agreement=0.9991, p50_ms=1.25) for lane in lanes for column in COLUMNS]
    for index, part in enumerate(parts):
        if changes and part.name in changes:
            parts[index] = PartResult(name=part.name, result=changes[part.name], why="because", output="last words")
    return SelfTest(nrd_trt="0.1.0", date="2026-05-17", machine=(Row("Python", "ok", "3.12 <b>"),), parts=tuple(parts))


# --- verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "verdict", "words"),
    [
        ({}, "passed", "tensorrt 10.3.0 passed on NVIDIA H100"),
        ({"operator": "not run"}, "passed", "; 1 of 11 parts were not run"),
        ({"operator": "failed"}, "passed", "FAILED: 1 of 11 parts"),
        *(({f"tensorrt/small/function/{column}": "failed"}, "failed", "FAILED: 1 of 11") for column in COLUMNS),
        *(({f"tensorrt/small/function/{column}": "not run"}, "incomplete", "incomplete on") for column in COLUMNS),
        ({"driver": "failed"}, "failed", "FAILED"),
        ({f"tensorrt/small/function/{column}": "not run" for column in COLUMNS}, "not run", "NOTHING WAS PROVEN"),
    ],
)
def test_a_flavour_passes_where_plans_of_every_precision_and_all_runs_passed(
    changes: dict[str, Result], verdict: str, words: str
) -> None:
    test = self_test(changes)
    assert test.verdict("tensorrt") == verdict
    assert words in test.conclusion


def test_one_network_is_enough_and_the_plugin_alone_is_not() -> None:
    lanes = ("tensorrt/small/function", "tensorrt/zoo/function", "tensorrt/small/plugin")
    assert self_test({"tensorrt/zoo/function/fp32": "not run"}, lanes).verdict("tensorrt") == "passed"
    assert self_test({"tensorrt/small/plugin/fp32": "failed"}, lanes).verdict("tensorrt") == "failed"
    assert self_test({}, lanes[2:]).verdict("tensorrt") == "incomplete"


def test_a_plugin_that_failed_is_no_pass() -> None:
    test = self_test()
    loaded = PartResult(name="tensorrt/plugin", result="failed", why="refused")
    assert replace(test, parts=(*test.parts, loaded)).verdict("tensorrt") == "failed"
    other = PartResult(name="tensorrt-rtx/small/function/fp32", result="failed", why="differs")
    assert replace(test, parts=(*test.parts, other)).verdict("tensorrt") == "passed"


@pytest.mark.parametrize(
    ("precision", "capability", "verdict"),
    [
        ("bf16", "7.5", "passed"),
        ("bf16", "8.0", "incomplete"),
        ("bf16", "10.0", "incomplete"),
        ("fp8", "8.7", "passed"),
        ("fp8", "8.9", "incomplete"),
    ],
)
def test_bf16_and_fp8_are_not_asked_of_gpus_without_them(precision: str, capability: str, verdict: str) -> None:
    test = self_test({f"tensorrt/small/function/{precision}": "not run"})
    driver = passed("driver", gpu="GPU", compute_capability=capability)
    assert replace(test, parts=(driver, *test.parts[1:])).verdict("tensorrt") == verdict


def test_a_report_is_read_back_as_it_was(tmp_path: Path) -> None:
    test = self_test({"operator": "not run"})
    write_report(tmp_path, test)
    content = (tmp_path / "selftest.json").read_bytes()
    assert msgspec.json.decode(content, type=SelfTest) == test
    assert json.loads(content) == json.loads(json.dumps(test.to_dict()))
    assert json.loads(content)["parts"][0] | {"figures": {}} == {
        "name": "driver",
        "result": "passed",
        "why": "",
        "seconds": 1.5,
        "figures": {},
        "output": "",
    }


# --- page ------------------------------------------------------------------------------------------------------------


def test_the_page_shows_every_part_with_its_reason_and_escapes_it() -> None:
    test = self_test({"tensorrt/small/function/int8": "failed", "operator": "not run"})
    page = render_report(test)
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert "FAILED: 1 of 11 parts" in text
    assert "tensorrt/small/function/int8 : because last words" in text
    assert "1 part: because operator" in text
    assert "gpu NVIDIA H100, compute_capability 9.0" in text
    assert text.count("0.9991") == 2 * 7 and "1.25 ms" not in text  # in the grid and below; times have both here
    assert "3.12 &lt;b&gt;" in page
    assert not re.search(r'(?:src|href|@import|url)\s*[=(]\s*["\']?(?!data:)', page)
    assert all(part.name in page for part in test.parts)


# --- privacy ---------------------------------------------------------------------------------------------------------


def test_names_of_users_hosts_and_homes_are_taken_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_user", lambda: "alice")
    monkeypatch.setattr(socket, "gethostname", lambda: "robot7.lab.example")
    monkeypatch.setattr(Path, "home", lambda: Path("/data/alice"))
    clean = cleaner(tmp_path / "report")
    said = f"{tmp_path}/report/x.nrd on robot7: /data/alice/a, /home/bob/b, /media/alice/c, /data/alice2, malice"
    assert clean(said) == "DIR/x.nrd on HOST: ~/a, ~/b, /media/USER/c, /data/alice2, malice"
    assert clean("at robot7.lab.example:80") == "at HOST:80"


def test_a_number_without_a_name_and_a_home_may_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", Mock(side_effect=KeyError("no such uid")))
    said = "~ and /usr/lib in /opt"
    assert cleaner(Path("a"))(said) == said


@pytest.mark.parametrize("name", ["root", "nvidia", ""])
def test_names_that_systems_come_with_tear_no_words_apart(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_user", lambda: name)
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    said = "check nvidia-smi as root: /proc/driver/nvidia on localhost"
    assert cleaner(Path("a"))(said) == said  # nor does a folder as it was typed


# --- matrix ----------------------------------------------------------------------------------------------------------


def test_the_page_of_the_documentation_holds_the_committed_reports_and_nothing_else() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == filled(page, REPORTS), "run scripts/dev/selftest_matrix.py"
    assert "<!-- matrix -->\n" in page and "<!-- end of matrix -->" in page


def test_readme_says_that_nothing_ran_on_a_gpu_as_long_as_no_row_passed() -> None:
    proven = any(row.verdict == "passed" for row in matrix_rows(REPORTS))
    assert (STATUS in (REPOSITORY / "README.md").read_text(encoding="utf-8")) == (not proven)


def test_a_row_passes_where_the_plans_of_a_report_did_and_made_up_rows_go(tmp_path: Path) -> None:
    page = "before\n<!-- matrix -->\n| made up | passed |\n<!-- end of matrix -->\nafter\n"
    assert filled(page, tmp_path) == "before\n<!-- matrix -->\nNo report was made yet.\n<!-- end of matrix -->\nafter\n"
    reports: dict[str, dict[str, Any]] = {
        "0.json": self_test(lanes=()).to_dict(),
        "a.json": self_test().to_dict(),
        "b.json": {
            **self_test({"tensorrt/small/function/fp16": "failed"}).to_dict(),
            "verdicts": {"tensorrt": "passed"},
        },
    }
    for name, content in reports.items():
        (tmp_path / name).write_text(json.dumps(content))
    rows = [line for line in filled(page, tmp_path).splitlines() if "selftests/" in line]
    about = "| NVIDIA H100 | tensorrt 10.3.0 | 0.1.0 |"
    about = "| NVIDIA H100 | tensorrt 10.3.0 | 0.1.0 |"
    assert rows == [
        "| NVIDIA H100 | none | 0.1.0 | not run | none | 2026-05-17 | [0.json](selftests/0.json) |",
        f"{about} passed | 8 passed | 2026-05-17 | [a.json](selftests/a.json) |",
        f"{about} failed | 7 passed, 1 failed | 2026-05-17 | [b.json](selftests/b.json) |",
    ]
