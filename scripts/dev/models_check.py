"""Build every released configuration in every form, hold its masks against PyTorch's, and write docs/models-check.md.

    python -m scripts.dev.models_check docs/models-check.md [--only EXPRESSION] [--retry]

Weights depend on names and shapes alone (`tests/golden/keyed_weights.py`), so masks have edges and mean nothing. A row
is one call of `nrd_trt.build` for TensorRT-RTX in a process of its own, with limits of memory and time; ONNX Runtime
draws the masks. Rows are kept in build/models-check.jsonl, so that a run that was ended goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import nrd_trt
from nrd_trt.specs import Precision

Form = Literal["static", "dynamic"]

_KEPT = Path("build/models-check.jsonl")
_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
_FORMS: dict[Form, dict[str, Any]] = {
    "static": {"size": (256, 512)},
    "dynamic": {"dynamic": ((128, 256), (256, 512), (256, 512))},
}
CONFIGURATIONS = (
    "ade20k_mit_b1",
    "cityscapes_r50",
    "ade20k_mit_b2",
    "ade20k_twins_l",
    "cityscapes_r101",
    "ade20k_r101",
    "pascal_context_r101",
    "pascal_context_59_r101",
    "ade20k_mit_b5",
    "ade20k_x101",
)
_TIME_S, _MEMORY_GIB = 900, 12


@dataclass(frozen=True, kw_only=True)
class Row:
    """One configuration in one form and precision.

    Attributes:
        configuration: Name of its recipe.
        form: One size or a range.
        precision: Types of the file.
        result: ``"passed"``, ``"failed"``: a gate did not hold, or ``"none"``: there is no bundle.
        why: What failed, or why there is none.
        agreement: Share of the pixels in which ONNX Runtime's masks are PyTorch's.
        structure: What the structural proof compared: ``"whole"`` or ``"layers"``.
        plan_mib: Size of TensorRT-RTX's plan.
        seconds: Time of the row.
        memory_mib: Largest memory of its process.
    """

    configuration: str
    form: Form
    precision: Precision
    result: Literal["passed", "failed", "none"]
    why: str = ""
    agreement: float | None = None
    structure: str = ""
    plan_mib: float | None = None
    seconds: float
    memory_mib: float | None = None

    @property
    def key(self) -> tuple[str, Form, Precision]:
        """What tells rows apart."""
        return self.configuration, self.form, self.precision

    def cell(self) -> str:
        """Return it as the table shows it."""
        if self.result == "none":
            return f"none: {self.why}"
        agrees = "" if self.agreement is None else f" {self.agreement:.5f}"
        return f"{self.result}{agrees}{f': {self.why}' if self.why else ''}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the rows that are left and write the page; end with 1 where a row did not pass that could."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("document", type=Path)
    parser.add_argument("--only", default="", help="rows whose name, form and precision match this expression")
    parser.add_argument("--retry", action="store_true", help="make rows again that did not pass")
    parser.add_argument("--row", nargs=3, metavar=("CONFIGURATION", "FORM", "PRECISION"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.row:
        print(json.dumps(asdict(_row(*args.row))))
        return 0
    known = {row.key: row for row in _read() if row.result == "passed" or not args.retry}
    _KEPT.parent.mkdir(parents=True, exist_ok=True)
    args.document.write_text(_document(known), encoding="utf-8")
    for key in _keys():
        if key in known or not re.search(args.only, " ".join(key)):
            continue
        known[key] = row = _made(key)
        with _KEPT.open("a", encoding="utf-8") as kept:
            print(json.dumps(asdict(row)), file=kept)
        print(*key, row.cell(), f"{row.seconds:.0f} s", file=sys.stderr, flush=True)
        args.document.write_text(_document(known), encoding="utf-8")
    return 0 if all(row.result == "passed" for row in known.values()) else 1


def _keys() -> Iterator[tuple[str, Form, Precision]]:
    yield from product(CONFIGURATIONS, _FORMS, _PRECISIONS)


def _read() -> Iterator[Row]:
    for line in _KEPT.read_text(encoding="utf-8").splitlines() if _KEPT.exists() else ():
        yield Row(**json.loads(line))


def _made(key: tuple[str, Form, Precision]) -> Row:
    """Make a row in a process of its own."""
    began = time.monotonic()
    command = ["nice", sys.executable, "-m", "scripts.dev.models_check", "-", "--row", *key]
    named: dict[str, Any] = dict(zip(("configuration", "form", "precision"), key, strict=True))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIME_S, check=False)
    except subprocess.TimeoutExpired:
        return Row(**named, result="none", why=f"took more than {_TIME_S} s", seconds=_TIME_S)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        return Row(**named, result="none", why=last[:200], seconds=time.monotonic() - began)
    return Row(**json.loads(done.stdout.splitlines()[-1]))


def _row(configuration: str, form: Form, precision: Precision) -> Row:
    """Make a row here."""
    import torch

    limit = _MEMORY_GIB << 30
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(1)
    began = time.monotonic()
    row: dict[str, Any] = {"configuration": configuration, "form": form, "precision": precision}
    with TemporaryDirectory() as folder:
        checkpoint, output = Path(folder) / "keyed.safetensors", Path(folder) / "keyed.nrd"
        _write_keyed(configuration, checkpoint)
        try:
            bundle = nrd_trt.build(
                checkpoint,
                output,
                precision=precision,
                builder="tensorrt-rtx",
                calibration="synthetic" if precision == "int8" else None,
                images=8 if precision == "int8" else None,
                threads=1,
                progress=False,
                **_FORMS[form],
            )
        except nrd_trt.ConfigError as exc:
            return Row(**row, result="none", why=str(exc).split(";")[0], seconds=time.monotonic() - began)
        found, plan = bundle.record.validation, output / "model.plan"
        return Row(
            **row,
            result="passed" if bundle.passed else "failed",
            why="; ".join(found.failures[:2]),
            agreement=found.pixel_agreement,
            structure=_structure(found.structure),
            plan_mib=plan.stat().st_size / 2**20 if plan.exists() else None,
            seconds=time.monotonic() - began,
            memory_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        )


def _structure(found: Any) -> str:
    if found is None:
        return ""
    return "not compared" if not found.checked and found.not_provable else str(found.compared)


def _write_keyed(configuration: str, path: Path) -> None:
    """Write a configuration's checkpoint, each tensor drawn from its name."""
    import torch

    from nrd_trt.model.checkpoint import save_checkpoint
    from nrd_trt.model.network import Segmentor
    from nrd_trt.training.recipes import find_recipe
    from tests.golden.keyed_weights import keyed_state_dict

    recipe = find_recipe(configuration)
    model = Segmentor(recipe.config, recipe.info)
    state = keyed_state_dict({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    model.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    save_checkpoint(model.eval(), path)


def _document(rows: Mapping[tuple[str, Form, Precision], Row]) -> str:
    """Return the page."""
    left = [key for key in _keys() if key not in rows]
    lines = [
        _INTRODUCTION,
        "",
        f"| configuration | form | {' | '.join(_PRECISIONS)} |",
        "|---" * (2 + len(_PRECISIONS)) + "|",
    ]
    for configuration, form in product(CONFIGURATIONS, _FORMS):
        found = [rows.get((configuration, form, precision)) for precision in _PRECISIONS]
        if any(found):
            cells = " | ".join(row.cell() if row else "not run" for row in found)
            lines.append(f"| `{configuration}` | {form} | {cells} |")
    lines += ["", "## What a row took", "", "| configuration | form | precision | plan, MiB | s | memory, MiB |"]
    lines.append("|---" * 6 + "|")
    for row in (rows[key] for key in _keys() if key in rows):
        plan, memory = ("–" if value is None else f"{value:.0f}" for value in (row.plan_mib, row.memory_mib))
        lines.append(
            f"| `{row.configuration}` | {row.form} | {row.precision} | {plan} | {row.seconds:.0f} | {memory} |"
        )
    if left:
        lines += ["", "## Not run yet", "", *(f"- `{name}`, {form}, {precision}" for name, form, precision in left)]
    return "\n".join([*lines, ""])


_INTRODUCTION = """\
# Released configurations, built

Made by `make models-check`, which goes on where it was ended. Every configuration has weights that depend on the names
of its tensors alone, and is exported at 256×512, or for 128×256 to 256×512 where it is dynamic, built for TensorRT-RTX
and drawn by ONNX Runtime on drawn scenes; int8 is calibrated on eight others. A cell says whether every gate of
[validation](validation.md) holds, and the share of the pixels in which the masks are those of PyTorch in fp32. No plan
was run, which takes a GPU that TensorRT-RTX builds for. Random weights draw masks full of ties, so that a row that
failed by its masks in 8 or 16 bits says little of trained ones."""


if __name__ == "__main__":
    sys.exit(main())
