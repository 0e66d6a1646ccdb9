"""The kernels' arithmetic on a CPU: host reference against PyTorch, emulated kernels against the host reference.

An emulated kernel is the kernel's own source, run block by block with its threads in a random order between barriers,
on shared memory that starts as NaN and ends at a page nobody may touch (plugins/nrd_decode/emulation.h).
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from nrd_trt.decode.cuda_op import VARIANTS
from nrd_trt.decode.reference import upsample
from nrd_trt.model.folding import PatchAdapter
from nrd_trt.specs import DecodeSpec
from tests.decode import on_cpu
from tests.decode.on_cpu import LAYOUTS, Tables, needs_compiler
from tests.golden.keyed_weights import keyed_image
from tests.helpers import GOLDEN, keyed_model, random_decode_inputs

pytestmark = needs_compiler

HOST, GENERIC, SIMT, TENSOR_CORE = range(len(VARIANTS))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MASK_DTYPES = (torch.uint8, torch.int32, torch.float16)
ORDER_TOLERANCE = 2e-6
"""Of the largest logit: PyTorch adds the same numbers in another order."""
TENSOR_CORE_TOLERANCE = 1e-5
"""Of the largest logit: activations keep 21 bits."""
EPSILON = {torch.float16: 2**-11, torch.bfloat16: 2**-8}

GIVEN = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@pytest.fixture(scope="module", autouse=True)
def binding() -> None:
    on_cpu.load_binding()


@dataclass(frozen=True, kw_only=True)
class Case:
    """One decode; `upsample` may be any factor, which `DecodeSpec` ties to the patch."""

    spec: DecodeSpec
    upsample: int
    theta: Tensor
    guidance: Tensor
    tables: Tables

    def logits(self, variant: int = HOST, *, seed: int = 0) -> Tensor:
        return on_cpu.launch_logits(self.spec, self.theta, self.guidance, self.tables, variant, seed=seed)

    def mask(self, variant: int = HOST, **options: Any) -> Tensor:
        tensors = self.theta, self.guidance, self.tables
        return on_cpu.launch_mask(self.spec, *tensors, variant, upsample=self.upsample, **options)

    def pytorch_logits(self) -> Tensor:
        return on_cpu.logits_in_fp32(self.spec, self.theta, self.guidance, self.tables)


def random_case(
    *sizes: int, size: tuple[int, int, int] = (1, 2, 3), dtype: torch.dtype = torch.float32, seed: int = 0
) -> Case:
    """Return a case of K, d, m, f and the factor, as far as they are given; the others are the released network's."""
    k, d, m, f, upsample = *sizes, *(19, 16, 16, 8, 4)[len(sizes) :]
    spec = DecodeSpec(num_classes=k, hidden=d, guidance_channels=m, patch=f, upsample=32 // f)
    theta, guidance, *tables = map(torch.from_numpy, random_decode_inputs(spec, *size, seed))
    lists = [table.tolist() for table in tables]
    return Case(spec=spec, upsample=upsample, theta=theta.to(dtype), guidance=guidance.to(dtype), tables=lists)


def smooth_case(*sizes: int, **changes: Any) -> Case:
    """A case whose masks have areas, as those of real images: weak guidance, patches that resemble each other."""
    case = random_case(*sizes, **changes)
    theta = case.theta[:, :, :1, :1] + 0.1 * case.theta
    return replace(case, theta=theta.to(case.theta.dtype), guidance=(0.1 * case.guidance).to(case.guidance.dtype))


@st.composite
def cases(draw: Any, *, released: bool = False) -> Case:
    """Any sizes that the kernels take, with one-patch and single-row images among them."""
    if released:
        sizes = (draw(st.sampled_from([2, 11, 19, 24, 40, 60])), 16, 16, 8, 4)
    else:
        sizes = (
            draw(st.one_of(st.integers(2, 60), st.sampled_from([150, 255, 256]))),
            *(draw(st.sampled_from(choice)) for choice in ((8, 16, 32), (8, 16, 32), (4, 8, 16), (1, 2, 4, 8))),
        )
    case = (smooth_case if draw(st.booleans()) else random_case)(
        *sizes,
        size=(draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 3))),
        dtype=draw(st.sampled_from(DTYPES)),
        seed=draw(st.integers(0, 2**31)),
    )
    theta, guidance = (
        LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](tensor) for tensor in (case.theta, case.guidance)
    )
    return replace(case, theta=theta, guidance=guidance)


def assert_mask_of(case: Case, mask: Tensor, logits: Tensor, tolerance: float) -> None:
    """Every pixel is the argmax of the enlarged logits, but for pixels whose two best are within the tolerance."""
    large = upsample(logits, case.upsample) if case.upsample > 1 else logits
    best = large.topk(2, dim=1).values
    decided = (best[:, 0] - best[:, 1]) > 2 * tolerance * logits.abs().max()
    assert mask.shape == decided.shape
    assert torch.equal(mask[decided].long(), large.argmax(dim=1)[decided])
    assert decided.float().mean() > 0.95


@GIVEN
@given(case=cases(), prune=st.booleans(), mask_type=st.sampled_from(MASK_DTYPES))
def test_host_reference_is_that_of_pytorch(case: Case, prune: bool, mask_type: torch.dtype) -> None:
    want, got = case.pytorch_logits(), case.logits()
    tolerance = (ORDER_TOLERANCE + EPSILON.get(got.dtype, 0)) * want.abs().max()
    assert (got.float() - want).abs().max() <= tolerance
    assert_mask_of(case, case.mask(prune=prune, dtype=mask_type), want, ORDER_TOLERANCE)


@GIVEN
@given(case=cases(), prune=st.booleans(), seed=st.integers(0, 2**31))
def test_generic_kernel_equals_the_host_bit_by_bit_and_pruning_changes_nothing(
    case: Case, prune: bool, seed: int
) -> None:
    want = case.mask()
    assert torch.equal(case.mask(prune=False), want)
    assert torch.equal(case.mask(GENERIC, prune=prune, seed=seed), want)
    assert torch.equal(case.logits(GENERIC, seed=seed), case.logits())


@GIVEN
@given(cases(released=True), st.booleans(), st.sampled_from(MASK_DTYPES), st.integers(0, 2**31))
def test_released_kernels_equal_the_host_bit_by_bit(case: Case, prune: bool, mask_type: torch.dtype, seed: int) -> None:
    want = case.mask(dtype=mask_type)
    assert torch.equal(case.mask(SIMT, prune=prune, dtype=mask_type, seed=seed), want)
    assert torch.equal(case.logits(SIMT, seed=seed), case.logits())


@GIVEN
@given(case=cases(released=True), prune=st.booleans(), seed=st.integers(0, 2**31))
def test_tensor_core_kernels_stay_within_their_bound(case: Case, prune: bool, seed: int) -> None:
    if case.theta.dtype == torch.float32:
        case = replace(case, theta=case.theta.half(), guidance=case.guidance.half())
    want = case.pytorch_logits()
    got = case.logits(TENSOR_CORE, seed=seed).float()
    assert (got - want).abs().max() <= (TENSOR_CORE_TOLERANCE + EPSILON[case.theta.dtype]) * want.abs().max()
    mask = case.mask(TENSOR_CORE, prune=prune, seed=seed)
    assert_mask_of(case, mask, want, TENSOR_CORE_TOLERANCE)


def test_tensor_core_activations_are_split() -> None:
    """fp32 logits show it: one tf32 number per activation misses the bound, the two that the kernel takes keep it."""
    case = random_case(size=(1, 1, 1), dtype=torch.bfloat16)
    exact, got = case.pytorch_logits(), case.logits(TENSOR_CORE)
    rounded_apart = (got != case.logits()).float().mean()
    assert rounded_apart < 0.01, "all but a few logits round to the same bfloat16"
    assert (got.float() - exact).abs().max() <= 2**-8 * exact.abs().max()


def test_results_do_not_depend_on_the_order_of_threads() -> None:
    case = random_case(30, dtype=torch.float16)
    for variant in range(GENERIC, len(VARIANTS)):
        masks = [case.mask(variant, seed=seed) for seed in range(4)]
        assert all(torch.equal(mask, masks[0]) for mask in masks)


ADVERSARIES = {
    "all zero": lambda theta: theta * 0,
    "equal classes": lambda theta: theta.mean(dim=1, keepdim=True).expand_as(theta),
    "huge": lambda theta: theta * 1e18,
    "overflow": lambda theta: theta * 3e38,
    "tiny": lambda theta: theta * 1e-30,
    "denormal": lambda theta: theta * 1e-43,
    "negative zero": lambda theta: -theta.abs() * 0,
    "NaN": lambda theta: _spoiled(theta, float("nan")),
    "infinity": lambda theta: _spoiled(theta, float("inf")),
    "minus infinity": lambda theta: _spoiled(theta, float("-inf")),
    "all NaN": lambda theta: theta * float("nan"),
}


def _spoiled(theta: Tensor, value: float) -> Tensor:
    """Put `value` at every 97th place."""
    flat = theta.clone().flatten()
    flat[::97] = value
    return flat.reshape(theta.shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("adversary", ADVERSARIES)
@pytest.mark.parametrize("num_classes", [5, 30])
def test_adversarial_weights_keep_kernels_and_pruning_exact(
    num_classes: int, adversary: str, dtype: torch.dtype
) -> None:
    for case in (random_case(num_classes), smooth_case(num_classes)):
        case = replace(case, theta=ADVERSARIES[adversary](case.theta).to(dtype), guidance=case.guidance.to(dtype))
        want, logits = case.mask(prune=False), _patterns(case.logits())
        assert torch.equal(case.mask(prune=True), want)
        for variant in (GENERIC, SIMT):
            assert torch.equal(case.mask(variant), want)
            assert torch.equal(_patterns(case.logits(variant)), logits)
        assert want.max() < num_classes


def _patterns(tensor: Tensor) -> Tensor:
    """Bits, with one pattern for NaN: x86 keeps the sign that a GPU drops."""
    integers = torch.int32 if tensor.dtype == torch.float32 else torch.int16
    return tensor.masked_fill(tensor.isnan(), 4321.0).view(integers)


@pytest.mark.parametrize("step", [2.0**-20, 2.0**-23, 0.0], ids=["close", "ulp", "tie"])
def test_pruning_is_exact_where_rounding_could_decide(step: float) -> None:
    """Classes 3 and 1 lead everywhere and differ by a few units in the last place, or by none."""
    case = _constant_logits(8, {1: 1.0, 3: 1.0 + step})
    want = case.mask(prune=False)
    assert torch.equal(case.mask(prune=True), want)
    assert torch.equal(case.mask(SIMT), want)


def _constant_logits(num_classes: int, values: dict[int, float]) -> Case:
    """Every pixel has these logits, and 0 for the other classes: only b2 is not zero. Scaled from patch to patch."""
    case = random_case(num_classes, size=(1, 3, 3))
    theta = torch.zeros_like(case.theta)
    for index, value in values.items():
        theta[:, theta.shape[1] - num_classes + index] = value
    return replace(case, theta=theta * (1 + torch.rand(3, 3, generator=torch.Generator().manual_seed(1))))


def test_ties_go_to_the_lowest_class_nan_never_wins_and_infinity_does() -> None:
    nan, inf = float("nan"), float("inf")
    expected = [
        ({2: 1.0, 4: 1.0}, 2),
        ({}, 0),
        ({0: -0.0, 1: 0.0}, 0),
        ({0: -1.0, 5: 0.0}, 1),
        ({k: nan for k in range(7)}, 0),
        ({0: nan, 1: -5.0, 2: nan, 3: -7.0, 4: -6.0, 5: -6.0, 6: -6.0}, 1),
        ({0: -1.0, 3: inf}, 3),
        ({2: inf, 3: inf}, 2),
        ({0: -inf, 6: nan}, 1),
    ]
    for values, winner in expected:
        case = _constant_logits(7, values)
        # In the image's outer half cells a weight is 0, and 0 * infinity is NaN.
        inner = np.s_[:, 2:-2, 2:-2] if inf in map(abs, values.values()) else np.s_[:]
        for prune in (False, True):
            mask = case.mask(prune=prune)
            assert (mask[inner] == winner).all(), values
            assert torch.equal(case.mask(SIMT, prune=prune), mask)


@pytest.mark.parametrize("num_classes", [7, 19, 60], ids=lambda count: f"{count} classes")
def test_ties_nan_and_infinity_on_tensor_cores(num_classes: int) -> None:
    """7 and 60 classes are surveyed first; what can win then must not depend on NaN or infinity."""
    nan, inf, last = float("nan"), float("inf"), num_classes - 1
    for values in (
        *({2: 1.0, last: 1.0}, {}, {0: -1.0, last: 2.0}, {k: nan for k in range(num_classes)}, {0: nan, last: 1.0}),
        *({3: inf}, {2: inf, last: inf}, {0: -inf, 1: nan}, {k: -inf for k in range(1, num_classes)}),
        {0: -3.0} | {k: nan if k % 2 else -5.0 - k for k in range(1, num_classes)},
    ):
        case = _constant_logits(num_classes, values)
        half = replace(case, theta=case.theta.half(), guidance=case.guidance.half())
        inner = np.s_[:, 2:-2, 2:-2] if inf in map(abs, values.values()) else np.s_[:]
        for prune in (False, True):
            assert torch.equal(half.mask(TENSOR_CORE, prune=prune)[inner], half.mask()[inner]), values


@pytest.mark.parametrize("place", [0, 300, 600])
def test_nan_passes_the_hidden_layers_as_in_pytorch(place: int) -> None:
    """A NaN among W0, W1 or W2; a ReLU that hides it would leave logits that look right."""
    case = random_case()
    case.theta[:, place, 0, 0] = float("nan")
    want = case.pytorch_logits().isnan()
    assert want.any() and not want.all()
    for variant in (HOST, GENERIC, SIMT):
        assert torch.equal(case.logits(variant).isnan(), want)
    half = replace(case, theta=case.theta.half(), guidance=case.guidance.half())
    assert torch.equal(half.logits(TENSOR_CORE).isnan(), want)


def test_an_infinite_hidden_value_stays_infinite_on_tensor_cores() -> None:
    """bfloat16 reaches it: the lower half of a split infinity must not be infinity - infinity."""
    case = random_case(dtype=torch.bfloat16)
    case.theta[:, 288:304] = 3e38  # b0
    case.theta[:, 304:576] = case.theta[:, 304:576].abs() * 1e3  # W1, b1: infinite sums
    case.theta[:, 576:] = case.theta[:, 576:].abs() + 1  # W2, b2
    assert case.logits().isinf().all()
    assert case.logits(TENSOR_CORE).isinf().all()


def test_tensors_of_more_than_2_31_elements() -> None:
    """The last block of an image whose tensors are mostly untouched memory draws what it draws in a small image."""
    small = random_case(size=(1, 2, 2), dtype=torch.float16)
    batch, rows, columns = 2, 2100, 1024
    theta = _untouched((batch, small.spec.theta_channels, rows, columns), torch.float16)
    guidance = _untouched((batch, 16, 8 * rows, 8 * columns), torch.float16)
    logits = _untouched((batch, 19, 8 * rows, 8 * columns), torch.float16)
    mask = _untouched((batch, 32 * rows, 32 * columns), torch.uint8)
    assert min(tensor.numel() for tensor in (theta, guidance, logits, mask)) > 2**31
    theta[-1, :, -1, -1] = small.theta[-1, :, -1, -1]
    guidance[-1, :, -8:, -8:] = small.guidance[-1, :, -8:, -8:]
    torch.ops.nrd_emulation.set(0, batch * rows * columns - 1)
    constants = *small.tables, *on_cpu.numbers(small.spec)
    torch.ops.nrd.launch_decode(theta, guidance, logits, *constants, SIMT)
    torch.ops.nrd.launch_decode_mask(theta, guidance, mask, *constants, 4, SIMT, True)
    assert torch.equal(logits[-1, :, -8:, -8:], small.logits()[-1, :, -8:, -8:])
    assert torch.equal(mask[-1, -30:, -30:], small.mask()[-1, -30:, -30:])


def _untouched(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros that take no memory until they are written."""
    size = int(np.prod(shape)) * dtype.itemsize
    no_reserve = 0x4000  # of Linux
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
    return torch.frombuffer(memory, dtype=dtype).reshape(shape)


def test_golden_logits_and_mask() -> None:
    """On weights and guidance that the released network predicts for the golden image."""
    with np.load(GOLDEN / "r50_cityscapes.npz") as file:
        golden = dict(file)
    adapter = PatchAdapter(keyed_model("resnetv1c50", 19))
    with torch.inference_mode():
        theta, guidance = adapter(torch.from_numpy(keyed_image(int(golden["image_seed"]), *golden["size_hw"])))
    tables = [adapter.x_table.tolist(), adapter.y_table.tolist()]
    case = replace(random_case(), theta=theta, guidance=guidance, tables=tables)
    deviation = golden["logits"].std()
    for variant in (HOST, SIMT):
        assert np.abs(case.logits(variant)[0].numpy() - golden["logits"]).max() <= 1e-4 * deviation
    best = upsample(torch.from_numpy(golden["logits"])[None], 4)[0].topk(2, dim=0).values
    clear = (best[0] - best[1]).numpy() > 1e-4 * deviation
    mask = case.mask(SIMT)
    assert np.array_equal(mask[0].numpy()[clear], golden["mask"][clear])
    assert torch.equal(mask, case.mask(prune=False))
