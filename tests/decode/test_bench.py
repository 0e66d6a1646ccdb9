"""The decode's bench without a GPU: its checks, forms and rotation on the binding for CPU tensors; see on_cpu.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nrd_trt.decode import bench
from nrd_trt.decode.bench import BASELINES, RUNS, TOLERANCE, Subject, authors_logits, random_inputs, runs_in_graph
from nrd_trt.decode.reference import patch_decode
from nrd_trt.specs import DecodeSpec
from tests.decode.on_cpu import LAYOUTS, load_binding, needs_compiler

SPEC = DecodeSpec(num_classes=40)
SPECS = [
    DecodeSpec(num_classes=19),
    DecodeSpec(num_classes=5, hidden=8, guidance_channels=32, patch=4, upsample=8),
    DecodeSpec(num_classes=150, hidden=4, guidance_channels=1, patch=16, upsample=2),
]

pytestmark = needs_compiler


@pytest.fixture(autouse=True)
def binding() -> None:
    load_binding()


def subject(**options: Any) -> Subject:
    inputs = random_inputs(SPEC, options.pop("batch", 2), 2, 2, device="cpu")
    return Subject(SPEC, inputs, **{"precision": "fp16", "cache_bytes": 0, "device": "cpu", **options})


@pytest.mark.parametrize(
    ("precision", "layout"), [("fp32", "nchw"), ("fp16", "channels_last"), ("bf16", "pitch_8"), ("fp16", "pitch_8")]
)
def test_every_kernel_passes(precision: Any, layout: str) -> None:
    case = subject(precision=precision, lay_out=LAYOUTS[layout], batch=1)
    variants = case.variants()
    assert variants == ["auto", "generic", "simt"] + ["tensor_core"] * (precision != "fp32")
    for variant in variants:
        check = case.check(variant)
        assert check.passed, (variant, check)
        assert check.logits_error is not None
        assert check.mask_different < 1e-3


MASK, LOGITS = "launch_decode_mask", "launch_decode"
Spoil = Callable[[Tensor, Tensor, bool], object]  # of the output, what it was before, and whether classes are pruned


def spoiled(name: str, monkeypatch: pytest.MonkeyPatch, spoil: Spoil) -> None:
    launch = getattr(torch.ops.nrd, name)

    def launch_and_spoil(*arguments: Any) -> None:
        before = arguments[2].clone()
        launch(*arguments)
        spoil(arguments[2], before, arguments[-1])

    monkeypatch.setattr(torch.ops.nrd, name, launch_and_spoil)


def flip(mask: Tensor, *_: object) -> None:
    mask[-1, 5, 7] ^= 1


@pytest.mark.parametrize(
    ("names", "spoil", "fields"),
    [
        ([MASK], flip, {"mask_gap"}),
        ([LOGITS], lambda logits, *_: logits[-1, 3, 2, 1].mul_(1.01), {"logits_error"}),
        (
            [MASK, LOGITS],
            lambda output, before, _: output[..., -1].copy_(before[..., -1]),
            {"mask_gap", "logits_error"},
        ),  # unwritten
        ([MASK], lambda mask, _, prune: prune or flip(mask), {"prune_equal"}),
    ],
)
def test_a_wrong_kernel_does_not_pass(
    names: list[str], spoil: Spoil, fields: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in names:
        spoiled(name, monkeypatch, spoil)
    check = subject(precision="fp32").check("auto")
    assert not check.passed
    bad = {"mask_gap"} if check.mask_gap > 2 * TOLERANCE else set()
    bad |= {"logits_error"} if check.logits_error is None or check.logits_error > TOLERANCE else set()
    bad |= {"prune_equal"} if not check.prune_equal else set()
    assert bad == fields


def test_differences_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that writes nothing leaves the results of the one before it, unless they are poisoned."""
    case = subject(precision="fp32")
    assert case.check("auto").passed and case.check("auto").mask_different == 0
    with monkeypatch.context() as patch:
        spoiled(MASK, patch, flip)
        assert case.check("auto").mask_different == 1 / (2 * 64 * 64)
    monkeypatch.setattr(torch.ops.nrd, MASK, lambda *_: None)
    assert case.check("auto").mask_different == 1


def test_inputs_outgrow_the_cache() -> None:
    one = subject()
    assert one.slots == 2
    many = subject(cache_bytes=10 * one.moved_bytes)
    assert many.slots == 40
    addresses = {tensor.data_ptr() for pair in many._inputs for tensor in pair} | {m.data_ptr() for m in many._masks}
    assert len(addresses) == 3 * 40


def test_layouts_hold_the_same_values() -> None:
    tensor = torch.randn(2, 5, 3, 4)
    layouts = {name: lay_out(tensor) for name, lay_out in LAYOUTS.items()}
    assert all(torch.equal(other, tensor) for other in layouts.values())
    assert {name: other.stride() for name, other in layouts.items()} == {
        "nchw": (60, 12, 4, 1), "channels_last": (60, 1, 20, 5), "pitch_8": (96, 1, 32, 8),
    }  # fmt: skip


def test_graphs_hold_enough_runs() -> None:
    assert runs_in_graph(10.0, 20) == RUNS
    assert runs_in_graph(10.0, 30) == 120  # whole rounds
    assert runs_in_graph(10.0, 200) == 200
    assert 50 <= runs_in_graph(1900.0, 2) < RUNS
    assert runs_in_graph(1e6, 2) == 2


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"K{s.num_classes}f{s.patch}")
def test_authors_form_equals_the_reference(spec: DecodeSpec) -> None:
    inputs = [tensor.double() for tensor in random_inputs(spec, 2, 2, 3, device="cpu")]
    expected = patch_decode(*inputs, spec)
    assert (authors_logits(*inputs, spec) - expected).abs().max() <= 1e-12 * expected.abs().max()
    swapped = inputs[0], inputs[1], inputs[3] + 1, inputs[2]
    assert (authors_logits(*swapped, spec) - expected).abs().max() > 0.1  # the control: x is not y


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run takes ten microseconds, and `torch.compile` generates no code."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_(function, backend="eager", **options))
    monkeypatch.setattr(bench, "time_in_graph", lambda call, *, slots, replays: [10.0] * replays)


@pytest.mark.usefixtures("timed")
@pytest.mark.parametrize("name", BASELINES)
def test_every_form_draws_the_reference_mask(name: str) -> None:
    found = subject(precision="fp32").baseline(name, replays=3)
    assert (found.us, found.skipped) == (10.0, None)
    assert found.agreement is not None and found.agreement > 0.9999


@pytest.mark.usefixtures("timed")
def test_forms_that_cannot_run_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise errors.pop()

    monkeypatch.setattr(bench, "time_in_graph", fail)
    errors: list[Exception] = [torch.OutOfMemoryError("Tried to allocate 10 GiB\nand more")]
    assert subject().baseline("authors", replays=1) == bench.Baseline(
        skipped="OutOfMemoryError: Tried to allocate 10 GiB"
    )
    errors = [torch.AcceleratorError("illegal memory access")]
    with pytest.raises(torch.AcceleratorError):
        subject().baseline("compiled", replays=1)
