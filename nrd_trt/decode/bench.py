"""Times the decode's kernels on a GPU beside other forms of the decode, correctness first. torch only.

A `Subject` holds one case in more copies than the cache can keep. Nothing here chooses cases or prints; floors, cost
models and layouts are measured by ``nrd_decode_bench`` (`plugins/nrd_decode/bench`).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nrd_trt.decode import reference
from nrd_trt.decode.cuda_op import VARIANTS, Variant
from nrd_trt.decode.extension import load_extension
from nrd_trt.specs import DecodeSpec, Precision

TOLERANCE = 1e-5
"""Of logits, relative to the largest one: tensor cores add in another order. Twice that for the gap of two logits."""

RUNS = 100
"""Runs in one graph: events resolve about half a microsecond, and a graph takes some microseconds to start."""

_LONGEST_GRAPH_US = 100_000.0
_FEWEST_RUNS = 2
_WARM_UP_US = 50_000.0
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_CACHE_MULTIPLE = 4
_POISON = 255

BASELINES = ("authors", "compiled")

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""Theta ``(B, P, h, w)``, guidance ``(B, m, f·h, f·w)`` and the two tables ``(f,)``, fp32."""

DrawMask = Callable[[Tensor, Tensor], Tensor]
"""Maps theta and guidance to class indices."""


@dataclass(frozen=True, kw_only=True)
class TorchGpu:
    """The current GPU as PyTorch sees it.

    Attributes:
        name: Marketing name.
        compute_capability: ``"8.7"``.
        l2_bytes: Size of the second-level cache.
        torch: Version of PyTorch.
        cuda: CUDA version that PyTorch was built for.
    """

    name: str
    compute_capability: str
    l2_bytes: int
    torch: str
    cuda: str | None


@dataclass(frozen=True, kw_only=True)
class Check:
    """How a kernel's results compare with the fp32 reference on the widened inputs.

    Attributes:
        logits_error: Largest difference of logits beyond one rounding to their type, relative to the largest logit;
            None where the variant gives no logits.
        mask_different: Share of mask pixels that differ.
        mask_gap: Largest gap between the reference's two best classes where the mask differs, relative as above.
        prune_equal: Whether the mask is the same without pruning.
        repeat_equal: Whether a second run gives the same mask.
        passed: Whether all is within `TOLERANCE`, and pruning and repetition change nothing.
    """

    logits_error: float | None
    mask_different: float
    mask_gap: float
    prune_equal: bool
    repeat_equal: bool
    passed: bool


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What became of one of `BASELINES`.

    Attributes:
        us: Median time per run in microseconds, or None where it cannot run here.
        agreement: Share of mask pixels that agree with the fp32 reference.
        skipped: Why it cannot run here.
    """

    us: float | None = None
    agreement: float | None = None
    skipped: str | None = None


def find_gpu() -> TorchGpu:
    """Return what the current GPU is.

    Raises:
        MissingDependencyError: There is none, or a tool for compiling the kernels is missing.
        PluginError: The kernels cannot be compiled or loaded.
    """
    load_extension()
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return TorchGpu(
        name=properties.name,
        compute_capability=f"{properties.major}.{properties.minor}",
        l2_bytes=properties.L2_cache_size,
        torch=str(torch.__version__),
        cuda=torch.version.cuda,
    )


def random_inputs(spec: DecodeSpec, batch: int, h: int, w: int, *, seed: int = 0, device: str = "cuda") -> Inputs:
    """Return normally distributed theta (spread 0.5) and guidance, and the coordinates k/f."""
    generator = torch.Generator(device).manual_seed(seed)
    theta_shape = batch, spec.theta_channels, h, w
    guidance_shape = batch, spec.guidance_channels, spec.patch * h, spec.patch * w
    theta, guidance = (
        torch.randn(shape, device=device, generator=generator) for shape in (theta_shape, guidance_shape)
    )
    steps = torch.arange(spec.patch, device=device) / spec.patch
    return theta / 2, guidance, steps, steps


def authors_logits(theta: Tensor, guidance: Tensor, x_table: Tensor, y_table: Tensor, spec: DecodeSpec) -> Tensor:
    """Decode as the authors' released head does, with every intermediate that it writes.

    Theta is enlarged to one parameter set per pixel. Each layer repeats its input once per output channel, multiplies
    it with the weights, and sums over the input channels by a grouped 1x1 convolution whose weights are all one.

    Args:
        theta: ``(B, P, h, w)``.
        guidance: ``(B, m, f·h, f·w)``, dtype of theta.
        x_table: ``(f,)``, dtype of theta.
        y_table: ``(f,)``, dtype of theta.
        spec: Build-time constants.

    Returns:
        Logits ``(B, K, f·h, f·w)``, computed in the dtype of theta.
    """
    batch, _, height, width = guidance.shape
    f, m, d, k = spec.patch, spec.guidance_channels, spec.hidden, spec.num_classes
    parameters = functional.interpolate(theta, scale_factor=f, mode="nearest")
    parts = torch.split(parameters, list(spec.sections), dim=1)
    x = x_table.repeat(width // f).expand(batch, 1, height, width)
    y = y_table.repeat(height // f)[:, None].expand(batch, 1, height, width)
    values = torch.cat([x, y, guidance], dim=1)
    for layer, (inputs, outputs) in enumerate(((2 + m, d), (d, d), (d, k))):
        if layer:
            values = functional.relu(values)
        weights, biases = parts[2 * layer : 2 * layer + 2]
        products = values.repeat(1, outputs, 1, 1) * weights
        ones = torch.ones(outputs, inputs, 1, 1, dtype=theta.dtype, device=theta.device)
        values = functional.conv2d(products, ones, groups=outputs) + biases
    return values


def mask_of_baseline(name: str, x_table: Tensor, y_table: Tensor, spec: DecodeSpec) -> DrawMask:
    """Return one of `BASELINES`: its logits in the dtype of theta, enlarged bilinearly, and their argmax.

    ``compiled`` is the decode as batched matrix products under `torch.compile`, for one shape.
    """
    decode = authors_logits if name == "authors" else reference.patch_decode

    def draw(theta: Tensor, guidance: Tensor) -> Tensor:
        return reference.upsample(decode(theta, guidance, x_table, y_table, spec), spec.upsample).argmax(dim=1)

    if name != "compiled":
        return draw
    torch._dynamo.reset()
    return torch.compile(draw, dynamic=False, fullgraph=True)


def pitched(tensor: Tensor) -> Tensor:
    """Copy ``(B, C, H, W)`` values as TensorRT lays out 16-bit tensors.

    That is channels-last with pixels a multiple of eight elements apart; the padding is NaN.
    """
    batch, channels, rows, columns = tensor.shape
    room = tensor.new_full((batch, rows, columns, -(-channels // 8) * 8), torch.nan)
    room[..., :channels] = tensor.permute(0, 2, 3, 1)
    return room[..., :channels].permute(0, 3, 1, 2)


class Subject:
    """One case: its inputs in the type asked for, as often as it takes to outgrow the cache.

    Args:
        spec: Build-time constants.
        inputs: On any device; copied.
        precision: Type of theta, guidance and logits.
        cache_bytes: Size of the GPU's second-level cache.
        device: Where it runs.
        lay_out: Copies theta and guidance into the layout that the kernels read.

    Attributes:
        slots: Number of copies.
        moved_bytes: Size of theta, guidance and mask of one copy, without padding.
    """

    def __init__(
        self,
        spec: DecodeSpec,
        inputs: Inputs,
        precision: Precision,
        *,
        cache_bytes: int,
        device: str = "cuda",
        lay_out: Callable[[Tensor], Tensor] = pitched,
    ) -> None:
        self.spec = spec
        theta, guidance, self._x, self._y = (tensor.to(device) for tensor in inputs)
        theta, guidance = (tensor.to(_DTYPES[precision]) for tensor in (theta, guidance))
        batch, _, h, w = theta.shape
        scale = spec.patch * spec.upsample
        mask = theta.new_empty((batch, h * scale, w * scale), dtype=torch.uint8)
        self.moved_bytes = sum(tensor.nbytes for tensor in (theta, guidance, mask))
        self.slots = max(2, -(-_CACHE_MULTIPLE * cache_bytes // self.moved_bytes))
        self._inputs = [(lay_out(theta), lay_out(guidance)) for _ in range(self.slots)]
        self._masks = [torch.empty_like(mask) for _ in range(self.slots)]
        self._constants = spec.num_classes, spec.hidden, spec.guidance_channels, spec.patch
        self._arguments = self._x.tolist(), self._y.tolist(), *self._constants

    def variants(self, *, mask: bool = True) -> list[Variant]:
        """Return the kernels that exist for this case on this GPU."""
        theta, numbers = self._inputs[0][0], (*self._constants, self.spec.upsample)
        supports = torch.ops.nrd.supports_variant
        return [variant for index, variant in enumerate(VARIANTS) if supports(theta, *numbers, index, mask)]

    def time_mask(self, variant: Variant, *, replays: int) -> list[float]:
        """Return microseconds per mask."""
        return time_in_graph(lambda slot: self._draw(slot, variant, True), slots=self.slots, replays=replays)

    def baseline(self, name: str, *, replays: int) -> Baseline:
        """Time one of `BASELINES` and compare the mask of its first image with the fp32 reference's."""
        kind = self._inputs[0][0].dtype
        try:
            draw = mask_of_baseline(name, self._x.to(kind), self._y.to(kind), self.spec)
            theta, guidance = (tensor[:1] for tensor in self._inputs[0])
            agreement = float((draw(theta, guidance)[0] == self._reference(0)[1]).float().mean())
            with torch.inference_mode():
                times = time_in_graph(lambda slot: draw(*self._inputs[slot]), slots=self.slots, replays=replays)
        except RuntimeError as exc:
            if isinstance(exc, torch.AcceleratorError) and "out of memory" not in str(exc):
                raise  # the device is in no state to go on
            return Baseline(skipped=f"{type(exc).__name__}: {str(exc).splitlines()[0] if str(exc) else ''}")
        finally:
            torch.cuda.empty_cache()
        return Baseline(us=statistics.median(times), agreement=agreement)

    def check(self, variant: Variant) -> Check:
        """Compare a kernel with the reference, image by image."""
        masks, logits = self._results(variant)
        different, mask_gap, logits_error = 0, 0.0, 0.0
        for image in range(len(masks[0])):
            wanted_logits, wanted, gap = self._reference(image)
            largest, wrong = float(wanted_logits.abs().max()), masks[0][image] != wanted
            different += int(wrong.sum())
            if wrong.any():
                mask_gap = max(mask_gap, float(gap[wrong].max()) / largest)
            if logits is not None:
                logits_error = max(logits_error, _excess(logits[image], wanted_logits) / largest)
        prune_equal, repeat_equal = (torch.equal(masks[0], other) for other in masks[1:])
        within = logits_error <= TOLERANCE and mask_gap <= 2 * TOLERANCE
        return Check(
            logits_error=None if logits is None else logits_error,
            mask_different=different / masks[0].numel(),
            mask_gap=mask_gap,
            prune_equal=prune_equal,
            repeat_equal=repeat_equal,
            passed=within and prune_equal and repeat_equal,
        )

    def _results(self, variant: Variant) -> tuple[list[Tensor], Tensor | None]:
        """Return three masks, the second without pruning, and the logits where the variant gives some."""
        masks = []
        for prune in (True, False, True):
            self._masks[0].fill_(_POISON)
            self._draw(0, variant, prune)
            masks.append(self._masks[0].clone())
        if variant not in self.variants(mask=False):
            return masks, None
        theta, guidance = self._inputs[0]
        logits = theta.new_full((len(theta), self.spec.num_classes, *guidance.shape[2:]), torch.nan)
        torch.ops.nrd.launch_decode(theta, guidance, logits, *self._arguments, VARIANTS.index(variant))
        return masks, logits

    def _draw(self, slot: int, variant: Variant, prune: bool) -> None:
        numbers = (*self._arguments, self.spec.upsample, VARIANTS.index(variant), prune)
        torch.ops.nrd.launch_decode_mask(*self._inputs[slot], self._masks[slot], *numbers)

    def _reference(self, image: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return one image's logits, its mask and the gap between the two best enlarged logits, all in fp32."""
        theta, guidance = (tensor[image, None].float() for tensor in self._inputs[0])
        logits = reference.patch_decode(theta, guidance, self._x, self._y, self.spec)[0]
        enlarged = reference.upsample(logits[None], self.spec.upsample)[0]
        best, mask = enlarged.max(dim=0)
        second = enlarged.scatter_(0, mask[None], -torch.inf).amax(dim=0)
        return logits, mask, best - second


def _excess(logits: Tensor, wanted: Tensor) -> float:
    """Return by how much logits differ beyond one rounding to their type; NaN counts as infinite."""
    rounding = 0.0 if logits.dtype == torch.float32 else torch.finfo(logits.dtype).eps
    excess = (logits.float() - wanted).abs() - rounding * wanted.abs()
    return float(excess.nan_to_num_(nan=torch.inf).max().clamp_min(0))


def time_in_graph(call: Callable[[int], object], *, slots: int, replays: int) -> list[float]:
    """Measure one run of `call`.

    Args:
        call: Queues one run on the inputs of a slot; it gets the slots in turn. It may allocate, and keeps nothing of
            what it allocated.
        slots: Number of sets of inputs.
        replays: How often the graph runs.

    Returns:
        Microseconds per run, one figure per replay.
    """
    estimate_us = _warm_up(call, slots)
    runs = runs_in_graph(estimate_us, slots)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(runs):
            call(index % slots)
    for _ in range(max(1, int(_WARM_UP_US / (estimate_us * runs)))):  # clocks rise, and the device stays busy
        graph.replay()
    marks = [_mark() for _ in range(replays + 1)]
    marks[0].record()
    for mark in marks[1:]:
        graph.replay()
        mark.record()
    torch.cuda.synchronize()
    graph.reset()
    return [1000 * marks[index].elapsed_time(marks[index + 1]) / runs for index in range(replays)]


def runs_in_graph(estimate_us: float, slots: int) -> int:
    """Return how often a graph runs the call: whole rounds over the slots, `RUNS` or more; fewer where it is slow."""
    if estimate_us * RUNS <= _LONGEST_GRAPH_US:
        return -(-RUNS // slots) * slots
    return max(_FEWEST_RUNS, int(_LONGEST_GRAPH_US / estimate_us))


def _warm_up(call: Callable[[int], object], slots: int) -> float:
    """Run beside the capture's stream, where lazy initialisation is allowed; return microseconds of a late run."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    estimates = []
    with torch.cuda.stream(stream):
        for index in range(5):
            start, end = _mark(), _mark()
            start.record()
            call(index % slots)
            end.record()
            end.synchronize()
            estimates.append(1000 * float(start.elapsed_time(end)))
    torch.cuda.current_stream().wait_stream(stream)
    return max(1.0, min(estimates[2:]))


def _mark() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
