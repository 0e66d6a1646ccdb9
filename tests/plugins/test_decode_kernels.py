"""The kernels' arithmetic on a CPU: host reference against PyTorch, emulated kernels against the host reference.

An emulated kernel is the kernel's own source, run block by block with its threads in a random order between barriers,
on shared memory that starts as NaN and ends at a page nobody may touch (plugins/nrd_decode/emulation.h).
"""

from __future__ import annotations

import mmap
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from nrd_trt.decode.reference import upsample
from nrd_trt.model.folding import PatchAdapter
from tests.golden.keyed_weights import keyed_image
from tests.helpers import GOLDEN, keyed_model
from tests.plugins import host_library as host
from tests.plugins.host_library import Case, random_case, smooth_case

pytestmark = pytest.mark.skipif(host.missing_tools() is not None, reason=str(host.missing_tools()))

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("planar", "channels_last", "padded")
ORDER_TOLERANCE = 2e-6
"""Of the largest logit: PyTorch adds the same numbers in another order."""
TENSOR_CORE_TOLERANCE = 1e-5
"""Of the largest logit: activations keep 21 bits."""
EPSILON = {torch.float16: 2**-11, torch.bfloat16: 2**-8}

GIVEN = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@st.composite
def cases(draw: Any, *, released: bool = False) -> Case:
    """Any sizes that the kernels take, with one-patch and single-row images among them."""
    if released:
        sizes = (draw(st.sampled_from([2, 11, 19, 24, 25, 60])), 16, 16, 8, 4)
    else:
        sizes = (
            draw(st.one_of(st.integers(2, 60), st.sampled_from([150, 255, 256]))),
            *(draw(st.sampled_from(choice)) for choice in ((8, 16, 32), (8, 16, 32), (4, 8, 16), (1, 2, 4, 8))),
        )
    case = (smooth_case if draw(st.booleans()) else random_case)(
        *sizes,
        batch=draw(st.integers(1, 2)),
        rows=draw(st.integers(1, 2)),
        columns=draw(st.integers(1, 3)),
        dtype=draw(st.sampled_from(DTYPES)),
        seed=draw(st.integers(0, 2**31)),
    )
    layouts = st.sampled_from(LAYOUTS)
    return replace(case, theta_layout=draw(layouts), guidance_layout=draw(layouts))


def assert_mask_of(case: Case, mask: np.ndarray, logits: Tensor, tolerance: float) -> None:
    """Every pixel is the argmax of the enlarged logits, but for pixels whose two best are within the tolerance."""
    large = upsample(logits, case.upsample) if case.upsample > 1 else logits
    best = large.topk(2, dim=1).values
    decided = ((best[:, 0] - best[:, 1]) > 2 * tolerance * logits.abs().max()).numpy()
    assert mask.shape == decided.shape
    assert np.array_equal(mask[decided], large.argmax(dim=1).numpy()[decided])
    assert decided.mean() > 0.95


@GIVEN
@given(case=cases())
def test_host_logits_are_those_of_pytorch(case: Case) -> None:
    want = host.reference_logits(case)
    got = host.host_logits(case)
    assert got.dtype == case.theta.dtype
    tolerance = (ORDER_TOLERANCE + EPSILON.get(got.dtype, 0)) * want.abs().max()
    assert (got.float() - want).abs().max() <= tolerance


@GIVEN
@given(case=cases(), prune=st.booleans(), mask_type=st.sampled_from(sorted(host.MASK_TYPES)))
def test_host_mask_is_that_of_pytorch(case: Case, prune: bool, mask_type: str) -> None:
    mask = host.host_mask(case, prune=prune, mask_type=mask_type)
    assert mask.dtype == host.MASK_DTYPES[mask_type]
    assert_mask_of(case, mask.astype(np.int64), host.reference_logits(case), ORDER_TOLERANCE)


@GIVEN
@given(case=cases(), prune=st.booleans(), seed=st.integers(0, 2**31))
def test_generic_kernel_equals_the_host_bit_by_bit_and_pruning_changes_nothing(
    case: Case, prune: bool, seed: int
) -> None:
    want = host.host_mask(case)
    assert np.array_equal(host.host_mask(case, prune=False), want)
    assert np.array_equal(host.kernel_mask(case, host.GENERIC, prune=prune, seed=seed), want)
    assert torch.equal(host.kernel_logits(case, host.GENERIC, seed=seed), host.host_logits(case))


@GIVEN
@given(
    case=cases(released=True),
    prune=st.booleans(),
    mask_type=st.sampled_from(sorted(host.MASK_TYPES)),
    seed=st.integers(0, 2**31),
)
def test_released_kernels_equal_the_host_bit_by_bit(case: Case, prune: bool, mask_type: str, seed: int) -> None:
    want = host.host_mask(case, mask_type=mask_type)
    variants = [host.SIMT] + [host.SIMT_RETAINED] * (case.num_classes > 24)
    for variant in variants:
        got = host.kernel_mask(case, variant, prune=prune, mask_type=mask_type, seed=seed)
        assert np.array_equal(got, want)
    assert torch.equal(host.kernel_logits(case, host.SIMT, seed=seed), host.host_logits(case))


@GIVEN
@given(case=cases(released=True), prune=st.booleans(), seed=st.integers(0, 2**31))
def test_tensor_core_kernels_stay_within_their_bound(case: Case, prune: bool, seed: int) -> None:
    if case.theta.dtype == torch.float32:
        case = replace(case, theta=case.theta.half(), guidance=case.guidance.half())
    want = host.reference_logits(case)
    largest = want.abs().max()
    got = host.kernel_logits(case, host.TENSOR_CORE, seed=seed).float()
    assert (got - want).abs().max() <= (TENSOR_CORE_TOLERANCE + EPSILON[case.theta.dtype]) * largest
    variants = [host.TENSOR_CORE] + [host.TENSOR_CORE_RETAINED] * (case.num_classes > 24)
    masks = [host.kernel_mask(case, variant, prune=prune, seed=seed) for variant in variants]
    assert_mask_of(case, masks[0], want, TENSOR_CORE_TOLERANCE)
    assert all(np.array_equal(mask, masks[0]) for mask in masks)


def test_tensor_core_activations_are_split() -> None:
    """fp32 logits show it: one tf32 number per activation misses the bound, the two that the kernel takes keep it."""
    case = random_case(19, rows=1, columns=1, dtype=torch.bfloat16)
    exact = host.reference_logits(case)
    want = host.host_logits(case)
    got = host.kernel_logits(case, host.TENSOR_CORE)
    rounded_apart = (got != want).float().mean()
    assert rounded_apart < 0.01, "all but a few logits round to the same bfloat16"
    assert (got.float() - exact).abs().max() <= 2**-8 * exact.abs().max()


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
    for case in (random_case(num_classes), smooth_case(num_classes=num_classes)):
        case = replace(case, theta=ADVERSARIES[adversary](case.theta).to(dtype), guidance=case.guidance.to(dtype))
        want = host.host_mask(case, prune=False)
        assert np.array_equal(host.host_mask(case, prune=True), want)
        for variant in (host.GENERIC, host.SIMT):
            assert np.array_equal(host.kernel_mask(case, variant), want)
            logits = host.kernel_logits(case, variant)
            assert torch.equal(_patterns(logits), _patterns(host.host_logits(case)))
        assert want.max() < num_classes and want.min() >= 0


def _patterns(tensor: Tensor) -> Tensor:
    """Bits, with one pattern for NaN: x86 keeps the sign that a GPU drops."""
    return (
        torch.where(tensor.isnan(), torch.zeros_like(tensor), tensor).view(
            torch.int32 if tensor.dtype == torch.float32 else torch.int16
        )
        + 7 * tensor.isnan()
    )


@pytest.mark.parametrize("step", [2.0**-20, 2.0**-23, 0.0], ids=["close", "ulp", "tie"])
def test_pruning_is_exact_where_rounding_could_decide(step: float) -> None:
    """Classes 3 and 1 lead everywhere and differ by a few units in the last place, or by none."""
    case = _constant_logits(8, {1: 1.0, 3: 1.0 + step})
    assert np.array_equal(host.host_mask(case, prune=True), host.host_mask(case, prune=False))
    assert np.array_equal(host.kernel_mask(case, host.SIMT), host.host_mask(case, prune=False))


def _constant_logits(num_classes: int, values: dict[int, float]) -> Case:
    """Every pixel has these logits, and 0 for the other classes: only b2 is not zero. Scaled from patch to patch."""
    case = random_case(num_classes, rows=3, columns=3)
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
            mask = host.host_mask(case, prune=prune)
            assert (mask[inner] == winner).all(), values
            assert np.array_equal(host.kernel_mask(case, host.SIMT, prune=prune), mask)


@pytest.mark.parametrize("place", [0, 300, 600])
def test_nan_passes_the_hidden_layers_as_in_pytorch(place: int) -> None:
    """A NaN among W0, W1 or W2; a ReLU that hides it would leave logits that look right."""
    case = random_case(19)
    theta = case.theta.clone()
    theta[:, place, 0, 0] = float("nan")
    case = replace(case, theta=theta)
    want = host.reference_logits(case).isnan()
    assert want.any() and not want.all()
    for logits in (host.host_logits(case), host.kernel_logits(case, host.SIMT), host.kernel_logits(case, host.GENERIC)):
        assert torch.equal(logits.isnan(), want)
    half = replace(case, theta=case.theta.half(), guidance=case.guidance.half())
    assert torch.equal(host.kernel_logits(half, host.TENSOR_CORE).isnan(), want)


def test_an_infinite_hidden_value_stays_infinite_on_tensor_cores() -> None:
    """bfloat16 reaches it: the lower half of a split infinity must not be infinity - infinity."""
    case = random_case(19, dtype=torch.bfloat16)
    theta = case.theta.clone()
    theta[:, 288:304] = 3e38  # b0
    theta[:, 304:576] = theta[:, 304:576].abs() * 1e3  # W1, b1: infinite sums
    theta[:, 576:] = theta[:, 576:].abs() + 1  # W2, b2
    case = replace(case, theta=theta)
    assert host.host_logits(case).isinf().all()
    assert host.kernel_logits(case, host.TENSOR_CORE).isinf().all()


def test_results_do_not_depend_on_the_order_of_threads() -> None:
    case = random_case(30, dtype=torch.float16)
    for variant in host.VARIANTS:
        masks = [host.kernel_mask(case, variant, seed=seed) for seed in range(4)]
        assert all(np.array_equal(mask, masks[0]) for mask in masks)


@pytest.mark.parametrize("sizes", [(1, 16, 16, 8, 4), (257, 16, 16, 8, 4), (19, 12, 16, 8, 4), (19, 16, 16, 5, 4)])
def test_sizes_that_no_kernel_takes_are_refused(sizes: tuple[int, ...]) -> None:
    case = random_case(19)
    names = ("num_classes", "hidden", "guidance_channels", "patch", "upsample")
    wrong = replace(case, **dict(zip(names, sizes, strict=True)))
    for run in (host.host_logits, host.host_mask):
        with pytest.raises(ValueError, match="expected"):
            run(wrong)


def test_tensors_of_more_than_2_31_elements() -> None:
    """The last block of an image whose tensors are mostly untouched memory draws what it draws in a small image."""
    small = random_case(19, rows=2, columns=2, dtype=torch.float16)
    batch, rows, columns = 2, 2100, 1024
    channels = small.theta.shape[1]
    big = replace(
        small,
        theta=_untouched((batch, channels, rows, columns), torch.float16),
        guidance=_untouched((batch, 16, 8 * rows, 8 * columns), torch.float16),
    )
    logits = _untouched(big.logits_shape, torch.float16)
    mask = _untouched(big.mask_shape, torch.uint8)
    assert min(tensor.numel() for tensor in (big.theta, big.guidance, logits, mask)) > 2**31
    big.theta[-1, :, -1, -1] = small.theta[-1, :, -1, -1]
    big.guidance[-1, :, -8:, -8:] = small.guidance[-1, :, -8:, -8:]
    host.last_blocks(big, logits.view(torch.int16).numpy(), mask.numpy(), host.SIMT)
    assert torch.equal(logits[-1, :, -8:, -8:], host.host_logits(small)[-1, :, -8:, -8:])
    assert np.array_equal(mask[-1, -30:, -30:].numpy(), host.host_mask(small, mask_type="uint8")[-1, -30:, -30:])


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
    tables = {"x_table": torch.from_numpy(adapter.x_table), "y_table": torch.from_numpy(adapter.y_table)}
    case = replace(random_case(19), theta=theta, guidance=guidance, **tables)
    deviation = golden["logits"].std()
    for logits in (host.host_logits(case), host.kernel_logits(case, host.SIMT)):
        assert np.abs(logits[0].numpy() - golden["logits"]).max() <= 1e-4 * deviation
    best = upsample(torch.from_numpy(golden["logits"])[None], 4)[0].topk(2, dim=0).values
    tied = (best[0] - best[1]).numpy() <= 1e-4 * deviation
    mask = host.kernel_mask(case, host.SIMT)[0]
    assert np.array_equal(mask[~tied], golden["mask"][~tied])
    assert np.array_equal(mask, host.host_mask(case, prune=False)[0])
