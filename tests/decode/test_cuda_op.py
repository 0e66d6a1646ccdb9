"""The operators on a CPU, in `torch.compile` and in `torch.export`. What they do on a GPU is in tests/gpu."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nrd_trt.decode import cuda_op, reference
from nrd_trt.decode.cuda_op import patch_decode, patch_decode_mask
from nrd_trt.errors import ConfigError, ShapeError
from nrd_trt.runtime.graph_io import mask_of_logits
from nrd_trt.specs import DecodeSpec
from tests.decode.on_cpu import logits_in_fp32, numbers
from tests.helpers import cached_small_model, random_decode_inputs

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SPEC = DecodeSpec(num_classes=7, hidden=8, guidance_channels=8)
EVERY = [  # every pair of d, m and f, with both K
    DecodeSpec(num_classes=k, hidden=d, guidance_channels=m, patch=f, upsample=32 // f)
    for k, d, m, f in zip(
        (2, 19) * 5, (8, 16, 32) * 3, (8, 8, 8, 16, 16, 16, 32, 32, 32), (4, 8, 16, 8, 16, 4, 16, 4, 8), strict=False
    )
]


def inputs(
    spec: DecodeSpec = SPEC, size: tuple[int, int, int] = (2, 3, 2), dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, list[float], list[float]]:
    theta, guidance, x_table, y_table = random_decode_inputs(spec, *size)
    return torch.from_numpy(theta).to(dtype), torch.from_numpy(guidance).to(dtype), x_table.tolist(), y_table.tolist()


@pytest.mark.parametrize("spec", EVERY)
def test_equal_to_the_reference(spec: DecodeSpec) -> None:
    """The mask is compared with NumPy's enlargement too, which shares nothing with PyTorch's."""
    theta, guidance, *tables = inputs(spec, (2, 1, 2))
    logits, mask = patch_decode(theta, guidance, *tables, spec), patch_decode_mask(theta, guidance, *tables, spec)
    expected = logits_in_fp32(spec, theta, guidance, tables)
    assert torch.equal(logits, expected)
    assert logits.is_contiguous()
    assert mask.dtype == torch.uint8
    assert torch.equal(mask, reference.upsample(expected, spec.upsample).argmax(dim=1).to(torch.uint8))
    drawn = np.stack([mask_of_logits(image, spec.upsample) for image in expected.numpy()])
    assert (mask.numpy() == drawn).mean() > 0.9999
    assert len(mask.unique()) == 2 if spec.num_classes == 2 else len(mask.unique()) > 4


def test_any_factor_with_any_patch() -> None:
    """The operator knows no stride of 32; a `DecodeSpec` does."""
    for patch, factor in itertools.product((4, 8, 16), (1, 2, 4, 8)):
        spec = DecodeSpec(num_classes=5, patch=patch, upsample=32 // patch)
        theta, guidance, *tables = inputs(spec, (1, 2, 1))
        mask = torch.ops.nrd.patch_decode_mask(theta, guidance, *tables, *numbers(spec), factor, 0, True)
        expected = logits_in_fp32(spec, theta, guidance, tables)
        assert mask.shape == (1, factor * patch * 2, factor * patch)
        assert torch.equal(mask, reference.upsample(expected, factor).argmax(dim=1).to(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_nothing_is_rounded_before_the_mask(dtype: torch.dtype) -> None:
    """16-bit inputs are widened; where rounded logits would tie, the mask still tells the classes apart."""
    spec = DecodeSpec(num_classes=19)
    theta, guidance, *tables = inputs(spec, (2, 3, 3), dtype)
    expected = logits_in_fp32(spec, theta, guidance, tables)
    assert torch.equal(patch_decode(theta, guidance, *tables, spec), expected.to(dtype))
    mask = patch_decode_mask(theta, guidance, *tables, spec)
    assert torch.equal(mask, reference.upsample(expected, 4).argmax(dim=1).to(torch.uint8))
    rounded = reference.upsample(expected.to(dtype).float(), 4).argmax(dim=1).to(torch.uint8)
    assert not torch.equal(mask, rounded)


def test_ties_infinities_and_nan() -> None:
    spec = DecodeSpec(num_classes=3, hidden=8, guidance_channels=8)
    nan, inf = math.nan, math.inf
    patches = {
        (1.0, 2.0, 2.0): 1, (-0.0, 0.0, 0.0): 0, (nan, 1.0, 2.0): 2, (nan, nan, -3.0): 2, (nan, nan, nan): 0,
        (-inf, -inf, -inf): 0, (nan, -inf, -inf): 0, (inf, nan, inf): 0, (-1e38, nan, -inf): 0, (3.0, nan, inf): 2,
    }  # fmt: skip
    tables = [0.0] * 8, [0.0] * 8
    for values, winner in patches.items():
        theta = torch.zeros(1, spec.theta_channels, 1, 1)
        theta[0, -3:, 0, 0] = torch.tensor(values)
        mask = patch_decode_mask(theta, torch.zeros(1, 8, 8, 8), *tables, spec)
        # In the outermost rows a neighbour has weight 0, and 0 times infinity is NaN.
        assert mask[:, 2:-2, 2:-2].unique().tolist() == [winner], values


def test_empty_batches_and_tables_that_are_tensors() -> None:
    theta, guidance, *tables = inputs()
    assert patch_decode(theta[:0], guidance[:0], *tables, SPEC).shape == (0, 7, 24, 16)
    assert patch_decode_mask(theta[:0], guidance[:0], *tables, SPEC).shape == (0, 96, 64)
    tensors = [torch.tensor(table) for table in tables]
    for function in (patch_decode, patch_decode_mask):
        assert torch.equal(function(theta, guidance, *tensors, SPEC), function(theta, guidance, *tables, SPEC))


@pytest.mark.parametrize("dtype", DTYPES[::2], ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    arguments = (*inputs(dtype=dtype), *numbers(SPEC))
    torch.library.opcheck(torch.ops.nrd.patch_decode.default, (*arguments, 0))
    torch.library.opcheck(torch.ops.nrd.patch_decode_mask.default, (*arguments, 4, 0, True))
    theta, guidance, *rest = arguments
    odd = (theta.to(memory_format=torch.channels_last), guidance.transpose(2, 3).contiguous().transpose(2, 3), *rest)
    torch.library.opcheck(torch.ops.nrd.patch_decode.default, (*odd, 0))


class Decoder(nn.Module):
    def __init__(self, spec: DecodeSpec, x_table: list[float], y_table: list[float]) -> None:
        super().__init__()
        self.spec, self.x_table, self.y_table = spec, x_table, y_table

    def forward(self, theta: Tensor, guidance: Tensor) -> tuple[Tensor, Tensor]:
        tables = self.x_table, self.y_table
        logits = patch_decode(theta, 2 * guidance, *tables, self.spec)
        return patch_decode_mask(theta, 2 * guidance, *tables, self.spec), logits + 1


SIZES = [(1, 2, 2), (2, 3, 2), (3, 2, 5)]


def assert_same(got: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    for one, other in zip(got, wanted, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.equal(one, other)


@pytest.mark.parametrize(("backend", "dynamic"), [("eager", False), ("aot_eager", True)])
def test_compiles_without_a_break(backend: str, dynamic: bool) -> None:
    decoder = Decoder(SPEC, *inputs()[2:])
    torch._dynamo.reset()
    compiled = torch.compile(decoder, backend=backend, fullgraph=True, dynamic=dynamic)
    for size in SIZES:
        theta, guidance, *_ = inputs(size=size)
        assert_same(compiled(theta, guidance), decoder(theta, guidance))


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_exports_with_dynamic_sizes(dtype: torch.dtype) -> None:
    decoder = Decoder(SPEC, *inputs()[2:])
    batch, h, w = (torch.export.Dim(name, min=1, max=64) for name in ("batch", "h", "w"))
    shapes = ({0: batch, 2: h, 3: w}, {0: batch, 2: 8 * h, 3: 8 * w})
    program = torch.export.export(decoder, inputs(dtype=dtype)[:2], dynamic_shapes=shapes)
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert {"nrd.patch_decode.default", "nrd.patch_decode_mask.default"} <= set(called)
    for size in SIZES:
        theta, guidance, *_ = inputs(size=size, dtype=dtype)
        assert_same(program.module()(theta, guidance), decoder(theta, guidance))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_are_those_of_the_reference(dtype: torch.dtype) -> None:
    theta, guidance, *tables = inputs(dtype=dtype)
    theta.requires_grad_()
    guidance.requires_grad_()
    logits = patch_decode(theta, guidance, *tables, SPEC)
    got = torch.autograd.grad(logits.float().square().mean(), (theta, guidance))
    plain = reference.patch_decode(theta.float(), guidance.float(), *map(torch.tensor, tables), SPEC).to(dtype)
    wanted = torch.autograd.grad(plain.float().square().mean(), (theta, guidance))
    assert all(torch.equal(*pair) and one.abs().max() > 0 for pair in zip(got, wanted, strict=True) for one in pair)
    with torch.no_grad():
        assert not patch_decode(theta, guidance, *tables, SPEC).requires_grad
    assert not patch_decode_mask(theta, guidance, *tables, SPEC).requires_grad
    with pytest.raises(RuntimeError, match=r"no autograd formula was registered"):
        torch.ops.nrd.patch_decode(theta, guidance, *tables, *numbers(SPEC), 0).float().sum().backward()


BAD: list[tuple[type[Exception], str, dict[int, Callable[[Any], Any]]]] = [  # by the argument's place
    (ShapeError, "expected theta", {0: lambda theta: theta[:, :-1]}),
    (ShapeError, r"expected theta \(B, P, h, w\)", {0: lambda theta: theta[0]}),
    (ShapeError, "guidance", {1: lambda guidance: guidance[:, :, :-1]}),
    (ShapeError, "guidance", {1: lambda guidance: guidance[:1]}),
    (ShapeError, "expected tables of 8 values, got 7 and 8", {2: lambda table: table[1:]}),
    (ConfigError, "expected both float32", {0: Tensor.double}),
    (ConfigError, "float64", {0: Tensor.double, 1: Tensor.double}),
    (ConfigError, "got torch.float16 and torch.float32", {0: Tensor.half}),
    (ConfigError, "hidden: expected one of 8, 16, 32, got 12", {4: lambda spec: replace(spec, hidden=12)}),
    (ConfigError, "guidance_channels: .* 16, 32, got 1", {4: lambda spec: replace(spec, guidance_channels=1)}),
    (ConfigError, "patch: expected one of 4, 8, 16, got 2", {4: lambda spec: replace(spec, patch=2, upsample=16)}),
]


@pytest.mark.parametrize(("kind", "message", "changes"), BAD)
@pytest.mark.parametrize("function", [patch_decode, patch_decode_mask])
def test_bad_input_is_named(
    function: Callable[..., Tensor], kind: type[Exception], message: str, changes: dict[int, Callable[[Any], Any]]
) -> None:
    arguments = [changes.get(place, lambda same: same)(value) for place, value in enumerate((*inputs(), SPEC))]
    with pytest.raises(kind, match=message):
        function(*arguments)


def test_unknown_variants_and_numbers_out_of_range_are_named() -> None:
    theta, guidance, *tables = inputs()
    for function in (patch_decode, patch_decode_mask):
        with pytest.raises(ConfigError, match="variant 'fast': expected one of auto, generic"):
            function(theta, guidance, *tables, SPEC, variant="fast")
    with pytest.raises(ConfigError, match="variant: expected 0 to 3, got 4"):
        torch.ops.nrd.patch_decode(theta, guidance, *tables, *numbers(SPEC), 4)
    with pytest.raises(ConfigError, match="upsample: expected one of 1, 2, 4, 8, got 3"):
        torch.ops.nrd.patch_decode_mask(theta, guidance, *tables, *numbers(SPEC), 3, 0, True)
    with pytest.raises(ConfigError, match="num_classes: expected 2 to 256, got 1"):
        torch.ops.nrd.patch_decode(theta, guidance, *tables, 1, 8, 8, 8, 0)


def test_the_network_gives_what_the_decode_takes() -> None:
    model = cached_small_model()
    images = torch.randn(1, 3, 64, 96)
    theta, guidance, x_table, y_table = model.decode_inputs(images)
    decoded = patch_decode(theta, guidance, x_table, y_table, model.config.decode)
    assert torch.equal(decoded, model(images))
    with pytest.raises(ShapeError, match="multiples of 32"):
        model.decode_inputs(images[..., 1:])


def test_a_variant_changes_nothing_on_a_cpu() -> None:
    theta, guidance, *tables = inputs()
    wanted = patch_decode_mask(theta, guidance, *tables, SPEC)
    for variant in cuda_op.VARIANTS:
        for prune in (False, True):
            assert torch.equal(patch_decode_mask(theta, guidance, *tables, SPEC, variant=variant, prune=prune), wanted)
