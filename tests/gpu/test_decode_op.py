"""The decode's CUDA kernels in PyTorch, on a real GPU: results, layouts, streams, graphs, compilers, large tensors."""

from __future__ import annotations

import itertools
import math
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from nrd_trt.decode import bench, reference
from nrd_trt.decode.bench import Subject, random_inputs
from nrd_trt.decode.cuda_op import VARIANTS, patch_decode, patch_decode_mask
from nrd_trt.decode.extension import check_toolchain, load_extension
from nrd_trt.errors import ConfigError, MissingDependencyError
from nrd_trt.model import load_model
from nrd_trt.runtime.torch_runner import TorchRunner
from nrd_trt.specs import DecodeSpec
from nrd_trt.zoo import checkpoint_path
from tests.artefacts import REPOSITORY
from tests.decode.on_cpu import LAYOUTS, load_binding, numbers
from tests.decode.test_cuda_op import Decoder
from tests.helpers import agreement, byte_images


def _missing() -> str | None:
    if not torch.cuda.is_available():
        return "an NVIDIA GPU and a CUDA build of PyTorch"
    try:
        check_toolchain()
    except MissingDependencyError as exc:
        return str(exc)
    return None


_MISSING = _missing()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(_MISSING is not None, reason=f"needs {_MISSING}")]

SPEC = DecodeSpec(num_classes=19)
RELEASED = [DecodeSpec(num_classes=k) for k in (2, 19, 33, 150, 256)]
OTHERS = [
    DecodeSpec(num_classes=k, hidden=d, guidance_channels=m, patch=f, upsample=32 // f)
    for (k, d), m, f in itertools.product(((2, 8), (19, 16), (70, 32)), (8, 16, 32), (4, 8, 16))
]
EXACT = ("auto", "generic", "simt")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def spec_id(value: object) -> str | None:
    if not isinstance(value, DecodeSpec):
        return None
    return f"K{value.num_classes}d{value.hidden}m{value.guidance_channels}f{value.patch}"


def inputs(
    spec: DecodeSpec = SPEC, size: tuple[int, int, int] = (2, 4, 3), dtype: torch.dtype = torch.float16, seed: int = 0
) -> tuple[Tensor, Tensor, list[float], list[float]]:
    theta, guidance, x_table, y_table = random_inputs(spec, *size, seed=seed)
    return theta.to(dtype), guidance.to(dtype), x_table.tolist(), y_table.tolist()


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "pitch_8"])
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("spec", RELEASED, ids=spec_id)
def test_released_shapes_by_every_kernel(spec: DecodeSpec, precision: Any, layout: Any) -> None:
    """Against the reference in fp32, outputs poisoned first, pruned and not, twice."""
    load_extension()
    for size in ((2, 5, 7), (1, 1, 1), (3, 1, 4)):
        subject = Subject(spec, random_inputs(spec, *size), precision, cache_bytes=0, lay_out=LAYOUTS[layout])
        variants = subject.variants()
        assert {"auto", "generic", "simt"} <= set(variants)
        for variant in variants:
            check = subject.check(variant)
            assert check.passed, (variant, size, check)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("spec", OTHERS, ids=spec_id)
def test_other_shapes(spec: DecodeSpec, precision: Any) -> None:
    load_extension()
    for layout in ("nchw", "pitch_8"):
        subject = Subject(spec, random_inputs(spec, 2, 3, 2), precision, cache_bytes=0, lay_out=LAYOUTS[layout])
        check = subject.check("auto")
        assert check.passed, (layout, check)


def adversarial(spec: DecodeSpec, dtype: torch.dtype) -> tuple[Tensor, Tensor, list[float], list[float]]:
    """A patch for each trap: ties, huge, tiny, negative zero, NaN and infinity among theta and guidance."""
    theta, guidance, *tables = inputs(spec, (1, 3, 4), torch.float32)
    per_patch = theta.flatten(2)
    per_patch[0, :, 0] = 0
    per_patch[0, -spec.num_classes :, 1] = 1.5
    per_patch[0, :, 2] *= 1e4
    per_patch[0, :, 3] *= 1e-7
    per_patch[0, :, 4] = -0.0
    per_patch[0, ::7, 5] = math.nan
    per_patch[0, ::11, 6] = math.inf
    per_patch[0, ::13, 7] = -math.inf
    per_patch[0, -spec.num_classes :, 8] = -math.inf
    per_patch[0, :, 9] = math.nan
    guidance[0, 3, 2 * spec.patch :, : spec.patch // 2] = math.inf
    guidance[0, 5, 2 * spec.patch :, spec.patch :] = math.nan
    return theta.to(dtype), guidance.to(dtype), *tables  # type: ignore[return-value]


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ for the host reference")
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("spec", [*RELEASED, *OTHERS[::4]], ids=spec_id)
def test_bits_are_those_of_the_host_reference(spec: DecodeSpec, precision: str) -> None:
    """The kernels that use no tensor cores; the operators on CPU tensors run the host reference."""
    load_extension()
    load_binding()
    constants = numbers(spec)
    for case in (inputs(spec, dtype=DTYPES[precision]), adversarial(spec, DTYPES[precision])):
        theta, guidance, *tables = case
        batch, _, h, w = theta.shape
        logits = theta.new_empty((batch, spec.num_classes, spec.patch * h, spec.patch * w))
        mask = torch.empty(batch, 32 * h, 32 * w, dtype=torch.uint8, device="cuda")
        wanted_logits, wanted_mask = logits.cpu(), mask.cpu()
        torch.ops.nrd.launch_decode(theta.cpu(), guidance.cpu(), wanted_logits, *tables, *constants, 0)
        numbers_of_mask = (*constants, spec.upsample)
        torch.ops.nrd.launch_decode_mask(theta.cpu(), guidance.cpu(), wanted_mask, *tables, *numbers_of_mask, 0, True)
        for variant in map(VARIANTS.index, EXACT):
            for prune in (False, True):
                if torch.ops.nrd.supports_variant(theta, *numbers_of_mask, variant, True):
                    mask.fill_(77)
                    torch.ops.nrd.launch_decode_mask(theta, guidance, mask, *tables, *numbers_of_mask, variant, prune)
                    assert torch.equal(mask.cpu(), wanted_mask), (VARIANTS[variant], prune)
            if torch.ops.nrd.supports_variant(theta, *numbers_of_mask, variant, False):
                logits.fill_(77)
                torch.ops.nrd.launch_decode(theta, guidance, logits, *tables, *constants, variant)
                # NaN is compared as NaN: its bits are not defined.
                got = logits.cpu().float().nan_to_num(nan=12345.0)
                assert torch.equal(got, wanted_logits.float().nan_to_num(nan=12345.0)), VARIANTS[variant]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float16], ids=str)
def test_every_mask_type(dtype: torch.dtype) -> None:
    load_extension()
    theta, guidance, *tables = inputs()
    mask = torch.full((2, 128, 96), 77, dtype=dtype, device="cuda")
    torch.ops.nrd.launch_decode_mask(theta, guidance, mask, *tables, *numbers(SPEC), 4, 0, True)
    assert torch.equal(mask.to(torch.uint8), patch_decode_mask(theta, guidance, *tables, SPEC))


def test_odd_strides_are_copied() -> None:
    theta, guidance, *tables = inputs()
    wanted = patch_decode_mask(theta, guidance, *tables, SPEC)
    turned = [tensor.transpose(2, 3).contiguous().transpose(2, 3) for tensor in (theta, guidance)]
    assert torch.equal(patch_decode_mask(*turned, *tables, SPEC), wanted)


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "pitch_8"])
def test_no_memory_beyond_the_output(layout: Any) -> None:
    theta, guidance, *tables = inputs(size=(1, 16, 32))
    theta, guidance = LAYOUTS[layout](theta), LAYOUTS[layout](guidance)
    for function, expected_bytes in ((patch_decode_mask, 512 * 1024), (patch_decode, 19 * 128 * 256 * 2)):
        function(theta, guidance, *tables, SPEC)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        output = function(theta, guidance, *tables, SPEC)
        assert output.nbytes == expected_bytes
        assert torch.cuda.max_memory_allocated() - before <= -(-expected_bytes // 512) * 512


def test_the_current_stream_is_used() -> None:
    """The inputs arrive late on a side stream; a kernel elsewhere would read what was there before."""
    theta, guidance, *tables = inputs()
    other, *_ = inputs(seed=1)
    wanted = patch_decode_mask(other, guidance, *tables, SPEC)
    assert not torch.equal(wanted, patch_decode_mask(theta, guidance, *tables, SPEC))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        theta.copy_(other, non_blocking=True)
        mask = patch_decode_mask(theta, guidance, *tables, SPEC)
    stream.synchronize()
    assert torch.equal(mask, wanted)


def test_threads_with_a_stream_each() -> None:
    cases = [inputs(seed=seed) for seed in range(4)]
    wanted = [patch_decode_mask(*case, SPEC) for case in cases]
    torch.cuda.synchronize()

    def work(_: int) -> bool:
        with torch.cuda.stream(torch.cuda.Stream()):
            pairs = list(zip(cases, wanted, strict=True)) * 20
            return all(torch.equal(patch_decode_mask(*case, SPEC), mask) for case, mask in pairs)

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(work, range(3))) == [True] * 3


def test_graphs_replay_with_new_inputs() -> None:
    theta, guidance, *tables = inputs()
    patch_decode_mask(theta, guidance, *tables, SPEC)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        mask = patch_decode_mask(theta, guidance, *tables, SPEC)
        logits = patch_decode(theta, guidance, *tables, SPEC)
    for seed in (1, 2):
        theta.copy_(inputs(seed=seed)[0])
        mask.fill_(77)
        logits.fill_(77)
        graph.replay()
        assert torch.equal(mask, patch_decode_mask(theta, guidance, *tables, SPEC))
        assert torch.equal(logits, patch_decode(theta, guidance, *tables, SPEC))


_FIRST_USE = """
import torch
from nrd_trt.decode.cuda_op import patch_decode_mask
from nrd_trt.decode.extension import load_extension
from tests.gpu.test_decode_op import SPEC, inputs
load_extension()
case = inputs()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    mask = patch_decode_mask(*case, SPEC)
mask.fill_(77)
graph.replay()
assert torch.equal(mask, patch_decode_mask(*case, SPEC))
print("same")
"""


def test_the_first_launch_may_be_captured() -> None:
    load_extension()
    command = [sys.executable, "-c", _FIRST_USE]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.stdout.strip().endswith("same"), result.stderr


# Inductor and Triton warn developers of theirs; results are what is tested.
_THEIR_WARNINGS = pytest.mark.filterwarnings("default")


@_THEIR_WARNINGS
@pytest.mark.parametrize("dynamic", [False, True])
def test_torch_compile(dynamic: bool) -> None:
    torch._dynamo.reset()
    decoder = Decoder(SPEC, *inputs()[2:])
    compiled = torch.compile(decoder, fullgraph=True, dynamic=dynamic)
    for size in ((2, 4, 3), (1, 2, 5)):
        theta, guidance, *_ = inputs(size=size)
        for got, wanted in zip(compiled(theta, guidance), decoder(theta, guidance), strict=True):
            assert torch.equal(got, wanted)


@_THEIR_WARNINGS
def test_torch_export() -> None:
    decoder = Decoder(SPEC, *inputs()[2:])
    batch, h, w = (torch.export.Dim(name, min=1, max=64) for name in ("batch", "h", "w"))
    shapes = ({0: batch, 2: h, 3: w}, {0: batch, 2: 8 * h, 3: 8 * w})
    program = torch.export.export(decoder, inputs()[:2], dynamic_shapes=shapes).module()
    theta, guidance, *_ = inputs(size=(3, 2, 5))
    for got, wanted in zip(program(theta, guidance), decoder(theta, guidance), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_more_than_two_to_the_31_elements(layout: Any) -> None:
    """Of theta for the mask, of the logits for the logits: the last image is drawn as it is alone."""
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of free GPU memory")
    for function, spec, batch in (
        (patch_decode_mask, DecodeSpec(num_classes=256), 216),
        (patch_decode, DecodeSpec(num_classes=150), 112),
    ):
        theta, guidance, *tables = inputs(spec, (1, 32, 64))
        last_theta, last_guidance, *_ = inputs(spec, (1, 32, 64), seed=1)
        many = LAYOUTS[layout](theta.expand(batch, -1, -1, -1))
        maps = LAYOUTS[layout](guidance.expand(batch, -1, -1, -1))
        many[-1], maps[-1] = last_theta[0], last_guidance[0]
        output = function(many, maps, *tables, spec)
        assert max(many.numel(), output.numel()) > 2**31
        assert torch.equal(output[-1], function(last_theta, last_guidance, *tables, spec)[0])
        assert torch.equal(output[-2], function(theta, guidance, *tables, spec)[0])
        del many, maps, output


@_THEIR_WARNINGS
def test_opcheck() -> None:
    arguments = (*inputs(), *numbers(SPEC))
    torch.library.opcheck(torch.ops.nrd.patch_decode.default, (*arguments, 0))
    torch.library.opcheck(torch.ops.nrd.patch_decode_mask.default, (*arguments, 4, 0, True))


def test_gradients_come_from_the_reference() -> None:
    theta, guidance, *tables = inputs(dtype=torch.float32)
    theta.requires_grad_()
    (got,) = torch.autograd.grad(patch_decode(theta, guidance, *tables, SPEC).square().mean(), theta)
    plain = reference.patch_decode(theta, guidance, *(torch.tensor(table, device="cuda") for table in tables), SPEC)
    (wanted,) = torch.autograd.grad(plain.square().mean(), theta)
    assert got.abs().max() > 0
    assert torch.allclose(got, wanted)


def test_bad_input_is_named() -> None:
    theta, guidance, *tables = inputs(dtype=torch.float32)
    with pytest.raises(RuntimeError, match="variant 3 of patch_decode_mask does not exist"):
        patch_decode_mask(theta, guidance, *tables, SPEC, variant="tensor_core")
    with pytest.raises(RuntimeError, match="guidance: expected a CUDA tensor on theta's device"):
        patch_decode_mask(theta, guidance.cpu(), *tables, SPEC)
    with pytest.raises(ConfigError, match="float64"):
        patch_decode_mask(theta.double(), guidance.double(), *tables, SPEC)


@pytest.mark.skipif(_MISSING is not None or torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_second_gpu() -> None:
    theta, guidance, *tables = inputs()
    wanted = patch_decode_mask(theta, guidance, *tables, SPEC)
    mask = patch_decode_mask(theta.to("cuda:1"), guidance.to("cuda:1"), *tables, SPEC)
    assert mask.device.index == 1
    assert torch.equal(mask.cpu(), wanted.cpu())


def test_runner_draws_the_masks_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    images = {"image": byte_images(5, 2, 192, 256)}
    path = checkpoint_path("nrd_mobilenetv2_camvid")
    results = []
    for device in ("cpu", "cuda"):
        with TorchRunner(load_model(path).to(device), margin=True) as runner:
            assert runner._has_kernels == (device == "cuda")
            results.append(runner.infer(images))
    on_cpu, on_gpu = results
    assert agreement(on_cpu["mask"], on_gpu["mask"]) >= 0.9999
    for name in ("logits", "margin"):
        assert abs(on_cpu[name] - on_gpu[name]).max() <= 1e-3 * abs(on_cpu["logits"]).max()


@_THEIR_WARNINGS
def test_the_bench_measures() -> None:
    gpu = bench.find_gpu()
    subject = Subject(SPEC, random_inputs(SPEC, 1, 16, 32), "fp16", cache_bytes=gpu.l2_bytes)
    mask = min(subject.time_mask("auto", replays=3))
    assert mask > 0
    for name in bench.BASELINES:
        found = subject.baseline(name, replays=2)
        assert found.us is not None and found.us > mask, found
        assert found.agreement is not None and found.agreement > 0.95
