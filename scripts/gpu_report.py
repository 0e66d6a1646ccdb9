"""The report of `gpu_check` as a page in Markdown. Standard library only, no GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], str]]

RESIDUAL_LIMIT = 0.15
MAIN_CASES = (("1024x2048", 19), ("512x1024", 19), ("512x512", 150), ("1024x2048", 150))

_GROUPS = {
    "checks": "Small images against the host reference, every pixel",
    "cases": "Masks",
    "layouts": "Memory formats and mask types",
    "fp32": "fp32",
    "logits": "Logits",
    "pixels": "Masks over the number of pixels",
    "classes": "Masks over the number of classes",
}


def markdown(report: Mapping[str, Any], decode_page: str | None) -> str:
    """Return the page.

    Args:
        report: The object of report.json.
        decode_page: Tables of the decode's benchmark in PyTorch.
    """
    machine = report["machine"]
    lines = [
        f"# GPU check: {machine['gpu']['name']}",
        "",
        f"{report['date']}, {report['seconds']:.0f} s: **{'passed' if report['passed'] else 'FAILED'}**. Made by "
        "`make gpu-check`, or `python3 scripts/gpu_check.py` where `make install` cannot run.",
        "",
        *_table(("", ""), _machine_rows(machine)),
        "",
        "## Parts",
        "",
        *_table(
            ("part", "result", "seconds", ""),
            [(part["name"], part["status"], f"{part['seconds']:.1f}", part["note"]) for part in report["parts"]],
        ),
        "",
        "```bash",
        *[command for part in report["parts"] for command in part["commands"]],
        "```",
    ]
    if report["bench"] is not None:
        lines += ["", *_bench(report["bench"])]
    if decode_page is not None:
        lines += ["", "## Decode in PyTorch", "", decode_page.strip()]
    if report["engine"] is not None:
        lines += ["", *_engine(report["engine"])]
    if report["overlap"] is not None:
        lines += ["", *_overlap(report["overlap"])]
    return "\n".join(lines) + "\n"


def _machine_rows(machine: Mapping[str, Any]) -> list[tuple[str, str]]:
    gpu, clocks = machine["gpu"], machine["clocks_during_bench"]
    rows = [
        ("GPU", f"{gpu['name']}, {gpu['multiprocessors']} multiprocessors, {gpu['memory_bytes'] / 2**30:.0f} GiB"),
        ("compute capability", gpu["compute_capability"]),
        ("driver", f"{machine['driver'] or 'unknown'}, for CUDA {gpu['cuda_driver']}"),
        ("highest SM clock", f"{gpu['clock_mhz']:.0f} MHz"),
        ("while kernels were timed", _clocks(clocks)),
        ("nvcc", machine["nvcc"] or "none"),
        ("CMake", machine["cmake"] or "none"),
        ("compute-sanitizer", machine["compute_sanitizer"] or "none"),
        ("host", f"{machine['platform']}, {machine['cores']} cores, Python {machine['python']}"),
        ("packages", ", ".join(f"{name} {version}" for name, version in machine["packages"].items()) or "none"),
        ("commit", machine["commit"] or "unknown"),
    ]
    return rows


def _clocks(clocks: Mapping[str, float] | None) -> str:
    if clocks is None:
        return "clocks unknown: nvidia-smi gave none"
    names = {"clocks_sm": ("SM", "MHz"), "clocks_mem": ("memory", "MHz"), "power_draw": ("power", "W")}
    names["temperature_gpu"] = ("temperature", "°C")
    shown = [
        f"{label} {clocks[f'{key}_median']:.0f} (at most {clocks[f'{key}_max']:.0f}) {unit}"
        for key, (label, unit) in names.items()
        if f"{key}_median" in clocks
    ]
    return ", ".join(shown)


def _bench(bench: Mapping[str, Any]) -> list[str]:
    """The sections of the C++ benchmark: what was aimed at, cost models, then every row."""
    rows = bench["rows"]
    wrong = [row for row in rows if not row["passed"]]
    lines = [
        "## Kernels alone",
        "",
        f"Kernel revision {bench['kernel_revision']}; {bench['checked']} launches checked, {len(wrong)} wrong. Copy on "
        f"the device: {bench['copy_bytes_per_s'] / 1e9:.0f} GB/s read and written. SM clock measured by the benchmark: "
        f"{bench['sm_clock_before_mhz']:.0f} MHz before, {bench['sm_clock_after_mhz']:.0f} MHz after. Times are in µs "
        "per launch, medians of CUDA graphs with 50 launches or more, inputs rotated through more than four times the "
        "L2 cache except in the column `warm`.",
    ]
    if wrong:
        faults = [(_setting(row), row["variant"], row["fault"]) for row in wrong]
        lines += ["", "### Wrong results", "", *_table(("setting", "variant", "fault"), faults)]
    timed = [row for row in rows if "p50_us" in row]
    lines += ["", "### Speed asked for", "", *_table(("", "measured", "limit", ""), list(targets(bench)))]
    if bench["models"]:
        lines += ["", "### Cost models", "", "fp16, batch 1, random theta.", "", *_models(bench["models"])]
    for group, title in _GROUPS.items():
        if found := [row for row in timed if row["group"] == group]:
            lines += ["", f"### {title}", "", *_rows(found)]
    return lines


def targets(bench: Mapping[str, Any]) -> Iterable[tuple[str, str, str, str]]:
    """Yield what was aimed at: name, measured, limit, and ``met``, ``MISSED`` or ``not measured``."""
    masks = [row for row in bench["rows"] if row["group"] == "cases" and "p50_us" in row]
    for values, key, formula in (
        ("random", "target_us", "1.6 · max(T_byte, T_instr) + t_empty"),
        ("natural", "byte_target_us", "2 · T_byte + t_empty"),
    ):
        for size, classes in MAIN_CASES:
            if values == "natural" and classes != 19:
                continue
            wanted = {"size": size, "classes": classes, "batch": 1, "type": "fp16", "values": values, "prune": True}
            found = [row for row in masks if all(row[name] == value for name, value in wanted.items())]
            name = f"{size} K={classes}, {values} theta: {formula}"
            if not found:
                yield name, "–", "–", "not measured"
                continue
            best = min(found, key=lambda row: float(row["p50_us"]))
            met = "met" if best["p50_us"] <= best[key] else "MISSED"
            yield name, f"{best['p50_us']:.2f} µs ({best['variant']})", f"{best[key]:.2f} µs", met
    for model in bench["models"]:
        if model["variable"] == "pixels":
            met = "met" if model["largest_residual"] <= RESIDUAL_LIMIT else "MISSED"
            name = f"t = a + b·pixels, {model['variant']}: largest residual"
            yield name, f"{100 * model['largest_residual']:.1f} %", f"{100 * RESIDUAL_LIMIT:.0f} %", met


def _models(models: Sequence[Row]) -> list[str]:
    rows = [
        (
            "megapixels" if model["variable"] == "pixels" else "classes",
            str(model["variant"]),
            f"{model['constant_us']:.2f}",
            f"{model['slope_us']:.3f}",
            f"{100 * model['largest_residual']:.1f} %",
            str(model["points"]),
        )
        for model in models
    ]
    return _table(("x", "variant", "a µs", "b µs per x", "largest residual", "points"), rows)


_FACTS: Sequence[Column] = (
    ("image", lambda row: str(row["size"])),
    ("K", lambda row: str(row["classes"])),
    ("batch", lambda row: str(row["batch"])),
    ("type", lambda row: str(row["type"])),
    ("theta", lambda row: f"{row['values']}, {100 * row['mixed_share']:.0f} % mixed"),
    ("theta layout", lambda row: str(row["theta_layout"])),
    ("guidance layout", lambda row: str(row["guidance_layout"])),
    ("mask type", lambda row: str(row.get("mask_type", "–"))),
    ("pruned", lambda row: {True: "yes", False: "no"}.get(row.get("prune"), "–")),  # type: ignore[arg-type]
    ("variant", lambda row: str(row["variant"])),
)


def _number(key: str) -> Callable[[Row], str]:
    return lambda row: f"{row[key]:.2f}" if key in row else "–"


_FIGURES: Sequence[Column] = (
    ("p50", _number("p50_us")),
    ("p90", _number("p90_us")),
    ("warm", _number("warm_p50_us")),
    ("T_byte", _number("byte_floor_us")),
    ("T_instr", _number("instruction_floor_us")),
    ("t_empty", _number("empty_us")),
    ("limit", _number("target_us")),
    ("p50/limit", _number("ratio")),
)


def _rows(rows: Sequence[Row]) -> list[str]:
    """One table; facts that all rows share stand above it."""
    shared = [(name, cell) for name, cell in _FACTS if len({cell(row) for row in rows}) == 1 and len(rows) > 1]
    names = {name for name, _ in shared}
    columns = [column for column in _FACTS if column[0] not in names] + list(_FIGURES)
    table = _table([name for name, _ in columns], [[cell(row) for _, cell in columns] for row in rows])
    above = ", ".join(f"{name} {cell(rows[0])}" for name, cell in shared)
    return [f"All rows: {above}.", "", *table] if above else table


def _setting(row: Row) -> str:
    return f"{row['size']} K={row['classes']} batch {row['batch']} {row['type']} {row['values']} {row['op']}"


def _engine(engine: Mapping[str, Any]) -> list[str]:
    latency = engine["latency_ms"]
    facts = f"{engine['runner']}, {engine['precision']}, {engine['size']}, batch {engine['batch']}"
    return [
        "## Bundle with TensorRT",
        "",
        f"{engine['target']}: {facts}; {engine['runs']} calls, from RGB to the mask, copies included.",
        "",
        *_table(
            ("p50 ms", "p90 ms", "p99 ms", "images per second"),
            [(*(f"{latency[key]:.3f}" for key in ("p50", "p90", "p99")), f"{engine['throughput_fps']:.1f}")],
        ),
    ]


def _overlap(row: Row) -> list[str]:
    figures = [f"{row[name]:.2f}" if row[name] else "–" for name in ("plain_fps", "overlapped_fps", "ratio")]
    return [
        "## Overlapped copies",
        "",
        f"The same bundle, host arrays to host arrays, {row['rounds']} rounds of {row['frames']} frames of either kind "
        "in turn. " + ("All outputs are equal." if row["equal"] else "**Outputs differ.**"),
        "",
        *_table(("frames/s run by run", "frames/s overlapped", "ratio"), [figures]),
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    body = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]
