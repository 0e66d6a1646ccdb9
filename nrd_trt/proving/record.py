"""What a self-test found: one result for each part, and what they add up to. No TensorRT, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from nrd_trt.engine.compat import lacks
from nrd_trt.machine.findings import Row
from nrd_trt.specs import PRECISIONS, Flavour

Result = Literal["passed", "failed", "not run"]
Verdict = Literal["passed", "failed", "incomplete", "not run"]
Figures = Mapping[str, float | str]
"""What a part measured or met, by name; the unit is in the name."""

DRIVER, OPERATOR, PLUGIN, RUNTIME_LIBRARY = "driver", "operator", "tensorrt/plugin", "tensorrt/runtime-library"
FORMS = ("function", "plugin")
RUNS = ("graph", "threads", "times")
"""What is done with a plan that holds its gate: a CUDA graph, two threads, a benchmark."""


@dataclass(frozen=True, kw_only=True)
class PartResult:
    """What became of one part.

    Attributes:
        name: Such as ``"driver"``, ``"tensorrt"``, or ``"tensorrt/small/function/fp16"`` for a part that runs a plan:
            flavour, network, form of the decode, and a precision or one of `RUNS`.
        result: A part that lacks something, or that was stopped at its deadline, is not run.
        why: Reason where it has not passed; empty where it has.
        seconds: How long it took.
        figures: What was measured.
        output: End of what a failed part printed.
    """

    name: str
    result: Result = "not run"
    why: str = ""
    seconds: float = 0.0
    figures: Figures = field(default_factory=dict)
    output: str = ""

    @property
    def shown(self) -> str:
        """The figures in one line."""
        texts = ((name, f"{value:.6g}" if isinstance(value, float) else value) for name, value in self.figures.items())
        return ", ".join(f"{name} {text}" for name, text in texts if text != "")

    @property
    def flavour(self) -> str | None:
        """The TensorRT flavour whose plan the part runs; None for a part that runs none."""
        return self.name.split("/")[0] if self.name.count("/") == 3 else None


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """The result of a self-test.

    Attributes:
        nrd_trt: Version of this toolkit.
        date: Day of the run, such as ``"2026-05-17"``.
        machine: What `nrd_trt.doctor` found.
        parts: In the order in which they are run.
    """

    nrd_trt: str
    date: str
    machine: tuple[Row, ...]
    parts: tuple[PartResult, ...]

    def with_result(self, result: Result) -> list[PartResult]:
        """Return the parts that ended so."""
        return [part for part in self.parts if part.result == result]

    @property
    def gpu(self) -> str | None:
        """Name of the GPU, or None where the driver opened none."""
        return self._figure(DRIVER, "gpu")

    @property
    def capability(self) -> str | None:
        """Compute capability of the GPU, or None where the driver opened none."""
        return self._figure(DRIVER, "compute_capability")

    @property
    def flavours(self) -> list[str]:
        """The TensorRT flavours that were there."""
        return [name for name in get_args(Flavour) if any(part.flavour == name for part in self.parts)]

    def version(self, flavour: str) -> str | None:
        """Return the version of a TensorRT flavour, or None where it could not be used."""
        return self._figure(flavour, "version")

    def verdict(self, flavour: str) -> Verdict:
        """Judge one TensorRT flavour on this machine.

        Returns:
            ``"failed"``: the driver, the flavour itself, its plugin or a plan of it did. ``"passed"``: none of these,
            and of one network at least, with the decode as a function, plans of every precision that the GPU has held
            their gates and every one of `RUNS` passed. ``"incomplete"``: none failed, and not all of that was run.
        """
        plans = {part.name: part.result for part in self.parts if part.flavour == flavour}
        if any(
            part.name in (DRIVER, flavour) or part.name.startswith(f"{flavour}/") for part in self.with_result("failed")
        ):
            return "failed"
        if "passed" not in plans.values():
            return "not run"
        lanes = {name.rpartition("/")[0] for name in plans if f"/{FORMS[0]}/" in name}
        demanded = (*(name for name in PRECISIONS if lacks(name, self.capability) is None), *RUNS)
        whole = any(all(plans.get(f"{lane}/{what}") == "passed" for what in demanded) for lane in lanes)
        return "passed" if whole else "incomplete"

    @property
    def conclusion(self) -> str:
        """What the run says, in one line."""
        failed, left = len(self.with_result("failed")), len(self.with_result("not run"))
        if failed:
            return f"FAILED: {failed} of {len(self.parts)} parts"
        judged = [(name, self.verdict(name)) for name in self.flavours]
        proven = [f"{name} {self.version(name)} {verdict}" for name, verdict in judged if verdict != "not run"]
        rest = f"; {left} of {len(self.parts)} parts were not run" if left else ""
        if proven:
            return f"{' and '.join(proven)} on {self.gpu}{rest}"
        return f"NOTHING WAS PROVEN about engines on this machine: no plan was run{rest}"

    def to_dict(self) -> dict[str, Any]:
        """Return the values of the JSON object."""
        counts = {name.replace(" ", "_"): len(self.with_result(name)) for name in get_args(Result)}
        verdicts = {name: self.verdict(name) for name in self.flavours}
        return {**asdict(self), **counts, "verdicts": verdicts, "conclusion": self.conclusion}

    def _figure(self, part: str, name: str) -> str | None:
        found = next((one.figures.get(name) for one in self.parts if one.name == part), None)
        return None if found is None else str(found)
