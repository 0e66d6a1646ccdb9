"""The decode's results for people: lines for a terminal and Markdown for a page. Standard library only.

Both read the object that `nrd_trt.benchmarking.decode_benchmark` returns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]
_BASELINES = {"authors": "authors' form", "matmul": "matmul", "compiled": "torch.compile"}


def text_lines(result: Result) -> list[str]:
    """Return the lines for a terminal."""
    lines = [*_conditions(result), ""]
    for title, rows in _tables(result):
        lines += [title, *_aligned(rows), ""]
    return [*lines, *(f"note: {note}" for note in result["notes"])]


def markdown(result: Result) -> str:
    """Return a section of a page, without its heading."""
    lines = ["```bash", result["command"], "```", "", *(f"- {line}" for line in _conditions(result)[1:])]
    lines += [f"- {note}" for note in result["notes"]]
    for title, rows in _tables(result):
        lines += ["", f"**{title}**", "", *_piped(rows)]
    return "\n".join(lines) + "\n"


def _conditions(result: Result) -> list[str]:
    gpu, versions = result["gpu"], result["versions"]
    lines = [
        result["command"],
        f"{gpu['name']} (compute capability {gpu['compute_capability']}, {gpu['multiprocessors']} multiprocessors, "
        f"at most {gpu['clock_max_mhz']:.0f} MHz), driver {result['driver'] or 'unknown'}, CUDA {versions['cuda']}, "
        f"PyTorch {versions['torch']}, nrd_trt {versions['nrd_trt']}",
        f"copy {result['copy_gb_per_s']:.0f} GB/s read and written; medians in µs of runs in CUDA graphs, inputs "
        "rotated through more than four times the L2 cache, unless marked warm",
    ]
    if result["device"] is not None:
        device = result["device"]
        lines.append(
            f"clock {_figure(device['clock_mhz']['during'], 0)} MHz, {_figure(device['power_w']['during'], 0)} W "
            f"during the run, throttled: {', '.join(device['throttle']) or 'no'}"
        )
    return lines


def _tables(result: Result) -> Iterable[tuple[str, list[list[str]]]]:
    cases = result["cases"]
    yield "Correctness against the fp32 reference", _checks(cases)
    yield "Masks: kernels", _kernels(cases)
    yield "Masks: against what bounds them and against other forms", _comparison(cases)
    yield "Cost model t = a + b·x, automatic kernel, fp16, one image", _models(result["lines"])
    yield "Speed asked for", _targets(result["targets"])


def _checks(cases: Sequence[Result]) -> list[list[str]]:
    rows = [["case", "kernel", "logits error", "other pixels", "their largest gap", "prune equal", "repeat equal", ""]]
    for case in cases:
        for kernel, check in case["checks"].items():
            figures = (_power(check[name]) for name in ("logits_error", "mask_different", "mask_gap"))
            answers = ("yes" if check[name] else "NO" for name in ("prune_equal", "repeat_equal"))
            rows.append([_name(case), kernel, *figures, *answers, "passed" if check["passed"] else "FAILED"])
    return rows


def _kernels(cases: Sequence[Result]) -> list[list[str]]:
    rows = [["case", "kernel", "layout", "µs", "p10", "p90", "warm", "unpruned"]]
    for case in cases:
        for row in case["kernels"]:
            times = (_figure(row[name]) for name in ("us", "p10_us", "p90_us", "warm_us", "unpruned_us"))
            rows.append([_name(case), row["kernel"], row["layout"], *times])
    return rows


def _comparison(cases: Sequence[Result]) -> list[list[str]]:
    names = list(_BASELINES.values())
    rows = [["case", "mixed cells", "fastest", "µs", "T_byte", "T_instr", "t_empty", "limit", "logits", *names]]
    for case in cases:
        floors, fastest = case["floors"], case["fastest"]
        limit = floors["trained_limit_us" if case["theta"] == "trained" else "limit_us"]
        rows.append(
            [
                *(_name(case), f"{100 * case['mixed_cells']:.1f} %", fastest["kernel"] if fastest else "–"),
                *(_figure(fastest["us"] if fastest else None), _figure(floors["byte_us"])),
                *(_figure(floors["instruction_us"]), _figure(floors["empty_us"]), _figure(limit)),
                *(_figure(case["logits_us"]), *(_baseline(case, name) for name in _BASELINES)),
            ]
        )
    return rows


def _baseline(case: Result, name: str) -> str:
    """Show a baseline's time and how many times it is the fastest kernel's, or why it did not run."""
    row = case["baselines"].get(name)
    if row is None:
        return "–"
    if "skipped" in row:
        return str(row["skipped"])
    ratio = f" ({row['us'] / case['fastest']['us']:.1f}×)" if case["fastest"] else ""
    return f"{_figure(row['us'])}{ratio}"


def _models(lines: Sequence[Result]) -> list[list[str]]:
    rows = [["x", "at", "a µs", "b µs per unit", "measured µs", "residuals"]]
    for line in lines:
        unit = 1e6 if line["over"] == "pixels" else 1
        points = (f"{x / unit:.3g}: {y:.2f}" for x, y in line["points"])
        shares = (f"{100 * share:+.1f} %" for share in line["residuals"])
        over = "megapixels" if line["over"] == "pixels" else line["over"]
        rows.append(
            [
                *(over, str(line["at"]), _figure(line["offset_us"]), _figure(line["slope_us"] * unit)),
                *(", ".join(points), ", ".join(shares)),
            ]
        )
    return rows


def _targets(targets: Sequence[Result]) -> list[list[str]]:
    rows = [["target", "measured", "limit", ""]]
    for target in targets:
        figures = (_figure(target["value"]), _figure(target["limit"]))
        rows.append([target["name"], *figures, "met" if target["met"] else "MISSED"])
    return rows


def _name(case: Result) -> str:
    return f"{case['size']} K={case['num_classes']} ×{case['batch']} {case['precision']} {case['theta']}"


def _figure(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _power(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _piped(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]
