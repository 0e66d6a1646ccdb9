"""The tables of the decode's bench, from a result that was made up."""

from __future__ import annotations

from typing import Any

from nrd_trt.benchmarking.decode_floors import DecodeCase, Floors, fit_line, judge
from nrd_trt.benchmarking.decode_report import markdown, text_lines

CHECK = {"logits_error": 1.5e-7, "mask_different": 0.0, "mask_gap": 0.0, "prune_equal": True, "repeat_equal": True}


def kernel(name: str, us: float) -> dict[str, Any]:
    times = {"us": us, "p10_us": us - 1, "p90_us": us + 1, "warm_us": us / 2, "unpruned_us": 2 * us}
    return {"kernel": name, "layout": "pitch_8", **times}


def result() -> dict[str, Any]:
    case = {
        **DecodeCase(size_hw=(1024, 2048), num_classes=19).to_dict(),
        "mixed_cells": 0.125,
        "checks": {
            "auto": {**CHECK, "passed": True},
            "tensor_core": {**CHECK, "mask_gap": 0.5, "prune_equal": False, "passed": False},
            "simt_retained": {**CHECK, "logits_error": None, "passed": True},
        },
        "kernels": [kernel("auto", 12.0), kernel("simt_retained", 10.0)],
        "fastest": kernel("simt_retained", 10.0),
        "logits_us": 7.0,
        "floors": Floors(byte_us=2.0, instruction_us=10.0, empty_us=1.5).to_dict(),
        "baselines": {"authors": {"us": 250.0}, "compiled": {"skipped": "OutOfMemoryError: 10 | 20 GiB"}},
    }
    lines = [
        {**fit_line("pixels", [(2e6, 10.0), (4e6, 18.0), (8e6, 34.0)]).to_dict(), "at": "K=19"},
        {**fit_line("classes", [(2, 5.0), (19, 10.0)]).to_dict(), "at": "1024x2048"},
    ]
    return {
        "gpu": {
            "name": "Pretender", "compute_capability": "9.0", "multiprocessors": 132, "clock_max_mhz": 1980.0,
        },
        "driver": None,
        "versions": {"nrd_trt": "0.1.0", "torch": "2.13.0", "cuda": "13.0"},
        "command": "the command",
        "quick": True,
        "device": {"clock_mhz": {"during": 1755.4}, "power_w": {"during": None}, "throttle": ["power cap"]},
        "notes": ["a note"],
        "copy_gb_per_s": 4012.3,
        "cases": [case],
        "lines": lines,
        "targets": judge([case], lines),
    }  # fmt: skip


def cells(page: str, start: str) -> list[str]:
    """The row of a Markdown table that begins with these cells."""
    (line,) = (line for line in page.splitlines() if line.startswith(start))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_markdown() -> None:
    page, case = markdown(result()), "1024x2048 K=19 ×1 fp16 random"
    assert page.startswith("```bash\nthe command\n```\n")
    assert "Pretender (compute capability 9.0, 132 multiprocessors, at most 1980 MHz), driver unknown" in page
    assert "clock 1755 MHz, – W during the run, throttled: power cap" in page
    assert "copy 4012 GB/s" in page
    assert "- a note\n" in page
    assert cells(page, f"| {case} | tensor_core") == [
        case, "tensor_core", "1.5e-07", "0.0e+00", "5.0e-01", "NO", "yes", "FAILED",
    ]  # fmt: skip
    assert cells(page, f"| {case} | simt_retained | –")[-1] == "passed"
    assert cells(page, f"| {case} | simt_retained | pitch_8") == [
        case, "simt_retained", "pitch_8", "10.00", "9.00", "11.00", "5.00", "20.00",
    ]  # fmt: skip
    assert cells(page, f"| {case} | 12.5 %") == [
        case, "12.5 %", "simt_retained", "10.00", "2.00", "10.00", "1.50", "17.50", "7.00", "250.00 (25.0×)", "–",
        "OutOfMemoryError: 10 \\| 20 GiB",
    ]  # fmt: skip
    assert cells(page, "| megapixels")[:4] == ["megapixels", "K=19", "2.00", "4.00"]
    assert cells(page, "| classes")[1] == "1024x2048"
    assert page.count("met |") == 3
    assert "MISSED" not in page


def test_tables_are_well_formed() -> None:
    lines = markdown(result()).splitlines()
    tables = [line.replace("\\|", "") for line in lines if line.startswith("|")]
    rules = [index for index, line in enumerate(tables) if set(line) <= set("| -")]
    assert len(rules) == 5
    for start, end in zip(rules, [*(index - 1 for index in rules[1:]), len(tables)], strict=True):
        assert len({line.count("|") for line in tables[start - 1 : end]}) == 1


def test_text_is_aligned() -> None:
    lines = text_lines(result())
    first = next(index for index, line in enumerate(lines) if line.startswith("case"))
    column = lines[first].index("kernel")
    assert {line[column - 2 : column] for line in lines[first : first + 4]} == {"  "}
    assert lines[-1] == "note: a note"


def test_without_clocks_and_without_a_sound_kernel() -> None:
    bare = result()
    bare["device"] = None
    bare["cases"][0].update(kernels=[], fastest=None, logits_us=None)
    page = markdown(bare)
    assert "throttled" not in page
    assert cells(page, "| 1024x2048 K=19 ×1 fp16 random | 12.5 %")[2:4] == ["–", "–"]
    assert "| 250.00 |" in page
