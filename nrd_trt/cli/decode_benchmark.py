"""``benchmark --decode``: the decode's kernels alone, on a GPU."""

from __future__ import annotations

from pathlib import Path

import typer

from nrd_trt.cli import common


def run_decode_benchmark(*, quick: bool, markdown: Path | None, force: bool, as_json: bool, quiet: bool) -> None:
    """Measure, print and write; exit 1 where a kernel's results are wrong."""
    from nrd_trt.benchmarking import decode_report
    from nrd_trt.benchmarking.decode_benchmark import DecodeBenchRequest, benchmark_decode
    from nrd_trt.files import atomic_file, check_absent

    if markdown is not None:
        check_absent(markdown, force=force)
    command = " ".join(["python scripts/benchmark.py --decode", *(["--quick"] if quick else [])])
    request = DecodeBenchRequest(quick=quick, command=command, announce=lambda line: common.note(line, quiet=quiet))
    result = benchmark_decode(request)
    if as_json:
        common.print_json(result)
    else:
        typer.echo("\n".join(decode_report.text_lines(result)))
    if markdown is not None:
        with atomic_file(markdown) as temporary:
            temporary.write_text(decode_report.markdown(result), encoding="utf-8")
        common.note(f"wrote {markdown}", quiet=quiet)
    if not result["passed"]:
        raise typer.Exit(common.GATE_FAILED)
