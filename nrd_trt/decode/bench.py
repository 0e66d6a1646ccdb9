"""Measures the decode on a GPU: kernels, baselines and what bounds them. Needs a GPU; torch only.

A `Subject` holds one case in more copies than the cache can keep. Nothing here chooses cases or prints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from nrd_trt.decode import reference
from nrd_trt.decode.baselines import BASELINES
from nrd_trt.decode.cuda_op import VARIANTS, Variant
from nrd_trt.decode.extension import load_extension
from nrd_trt.decode.graph_timing import time_in_graph
from nrd_trt.specs import DecodeSpec, Precision

Layout = Literal["nchw", "channels_last", "pitch_8"]
"""``pitch_8`` is channels-last with pixels a multiple of eight elements apart, as TensorRT lays out 16-bit tensors."""

TOLERANCE = 1e-5
"""Of logits, relative to the largest one: tensor cores add in another order. Twice that for the gap of two logits."""

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_CACHE_MULTIPLE = 4
_POISON = 255
_COPY_BYTES = 1 << 30

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""Theta ``(B, P, h, w)``, guidance ``(B, m, f·h, f·w)`` and the two tables ``(f,)``, fp32."""


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
    """

    logits_error: float | None
    mask_different: float
    mask_gap: float
    prune_equal: bool
    repeat_equal: bool

    @property
    def passed(self) -> bool:
        """Whether all is within `TOLERANCE`, and pruning and repetition change nothing."""
        logits = self.logits_error is None or self.logits_error <= TOLERANCE
        return logits and self.mask_gap <= 2 * TOLERANCE and self.prune_equal and self.repeat_equal


def gpu_facts() -> dict[str, Any]:
    """Return what the current GPU is.

    Raises:
        MissingDependencyError: There is none, or the kernels cannot be compiled for it.
        PluginError: As above.
    """
    load_extension()
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "memory_bytes": properties.total_memory,
        "clock_max_mhz": torch.ops.nrd.clock_kilohertz(torch.empty(0, device="cuda")) / 1000,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def copy_bandwidth(*, replays: int) -> list[float]:
    """Return bytes per second, read and written, of copies far larger than the cache; one figure per replay."""
    size = min(_COPY_BYTES, torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory // 16)
    source, target = (
        torch.zeros(size, dtype=torch.uint8, device="cuda"),
        torch.empty(size, dtype=torch.uint8, device="cuda"),
    )
    return [2 * size / (us * 1e-6) for us in time_in_graph(lambda _: target.copy_(source), slots=1, replays=replays)]


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


@dataclass
class _Differences:
    """The largest found so far; `gap` and `logits` relative to the largest logit of their image."""

    pixels: int = 0
    gap: float = 0.0
    logits: float = 0.0


class Subject:
    """One case: its inputs in the type and the layout asked for, as often as it takes to outgrow the cache.

    Args:
        spec: Build-time constants.
        inputs: On any device; copied.
        precision: Of theta, guidance and logits.
        layout: Of theta and guidance.
        cache_bytes: Size of the GPU's second-level cache.
        device: Where it runs.

    Attributes:
        slots: Copies.
        moved_bytes: Theta, guidance and mask of one copy, without padding.
    """

    def __init__(
        self,
        spec: DecodeSpec,
        inputs: Inputs,
        precision: Precision,
        layout: Layout,
        *,
        cache_bytes: int,
        device: str = "cuda",
    ) -> None:
        self.spec = spec
        theta, guidance, self._x, self._y = (tensor.to(device) for tensor in inputs)
        theta, guidance = (tensor.to(_DTYPES[precision]) for tensor in (theta, guidance))
        batch, _, h, w = theta.shape
        scale = spec.patch * spec.upsample
        mask = theta.new_empty((batch, h * scale, w * scale), dtype=torch.uint8)
        self.moved_bytes = sum(tensor.nbytes for tensor in (theta, guidance, mask))
        self.slots = max(2, -(-_CACHE_MULTIPLE * cache_bytes // self.moved_bytes))
        self._inputs = [(laid_out(theta, layout), laid_out(guidance, layout)) for _ in range(self.slots)]
        self._masks = [torch.empty_like(mask) for _ in range(self.slots)]
        self._arguments = self._x.tolist(), self._y.tolist(), *_constants(spec)

    def variants(self, *, mask: bool = True) -> list[Variant]:
        """Return the kernels that exist for this case on this GPU."""
        theta, numbers = self._inputs[0][0], (*_constants(self.spec), self.spec.upsample)
        return [
            variant
            for index, variant in enumerate(VARIANTS)
            if torch.ops.nrd.supports_variant(theta, *numbers, index, mask)
        ]

    def time_mask(self, variant: Variant, *, replays: int, warm: bool = False, prune: bool = True) -> list[float]:
        """Return microseconds per mask; `warm` keeps to one set of inputs, which the cache may hold."""
        return time_in_graph(
            lambda slot: self._draw(slot, variant, prune), slots=1 if warm else self.slots, replays=replays
        )

    def time_logits(self, variant: Variant, *, replays: int) -> list[float]:
        """Return microseconds per logits."""
        theta, guidance = self._inputs[0]
        shape = (len(theta), self.spec.num_classes, *guidance.shape[2:])
        outputs = [theta.new_empty(shape) for _ in range(self.slots)]
        return time_in_graph(lambda slot: self._decode(slot, variant, outputs[slot]), slots=self.slots, replays=replays)

    def time_empty(self, *, replays: int) -> list[float]:
        """Return microseconds per empty kernel on the grid of the mask's."""
        return time_in_graph(
            lambda slot: torch.ops.nrd.launch_empty(self._inputs[slot][0], self.spec.patch), slots=1, replays=replays
        )

    def time_baseline(self, name: str, *, replays: int) -> list[float] | str:
        """Return microseconds per mask of one of `BASELINES`, or why it cannot run here."""
        kind = self._inputs[0][0].dtype
        try:
            draw = BASELINES[name](self._x.to(kind), self._y.to(kind), self.spec)
            with torch.inference_mode():
                return time_in_graph(lambda slot: draw(*self._inputs[slot]), slots=self.slots, replays=replays)
        except RuntimeError as exc:
            if isinstance(exc, torch.AcceleratorError) and "out of memory" not in str(exc):
                raise  # the device is in no state to go on
            return f"{type(exc).__name__}: {str(exc).splitlines()[0] if str(exc) else ''}"
        finally:
            torch.cuda.empty_cache()

    def baseline_agreement(self, name: str) -> float | str:
        """Return the share of mask pixels in which one of `BASELINES` agrees with the fp32 reference, or why not."""
        kind = self._inputs[0][0].dtype
        theta, guidance = (tensor[:1] for tensor in self._inputs[0])
        try:
            draw = BASELINES[name](self._x.to(kind), self._y.to(kind), self.spec)
            return float((draw(theta, guidance)[0] == self._reference(0)[1]).float().mean())
        except torch.OutOfMemoryError as exc:
            return f"OutOfMemoryError: {exc}"

    def check(self, variants: Sequence[Variant]) -> dict[Variant, Check]:
        """Compare kernels with the reference, image by image."""
        drawn = {variant: self._results(variant) for variant in variants}
        found = {variant: _Differences() for variant in variants}
        for image in range(len(self._inputs[0][0])):
            wanted_logits, wanted, gap = self._reference(image)
            largest = float(wanted_logits.abs().max())
            for variant, (masks, logits) in drawn.items():
                differences = found[variant]
                wrong = masks[0][image] != wanted
                differences.pixels += int(wrong.sum())
                if wrong.any():
                    differences.gap = max(differences.gap, float(gap[wrong].max()) / largest)
                if logits is not None:
                    differences.logits = max(differences.logits, _excess(logits[image], wanted_logits) / largest)
        return {
            variant: Check(
                logits_error=None if logits is None else found[variant].logits,
                mask_different=found[variant].pixels / masks[0].numel(),
                mask_gap=found[variant].gap,
                prune_equal=torch.equal(masks[0], masks[1]),
                repeat_equal=torch.equal(masks[0], masks[2]),
            )
            for variant, (masks, logits) in drawn.items()
        }

    def mixed_cells(self) -> float:
        """Return the share of cells, each between four neighbouring logits, whose corners' best classes differ."""
        shares = []
        for image in range(len(self._inputs[0][0])):
            best = self._reference_logits(image).argmax(dim=0)
            corners = best[:-1, :-1], best[1:, :-1], best[:-1, 1:], best[1:, 1:]
            same = torch.stack([corners[0] == other for other in corners[1:]]).all(dim=0)
            shares.append(1 - float(same.float().mean()))
        return sum(shares) / len(shares)

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
        self._decode(0, variant, logits)
        return masks, logits

    def _draw(self, slot: int, variant: Variant, prune: bool) -> None:
        numbers = (*self._arguments, self.spec.upsample, VARIANTS.index(variant), prune)
        torch.ops.nrd.launch_decode_mask(*self._inputs[slot], self._masks[slot], *numbers)

    def _decode(self, slot: int, variant: Variant, logits: Tensor) -> None:
        torch.ops.nrd.launch_decode(*self._inputs[slot], logits, *self._arguments, VARIANTS.index(variant))

    def _reference_logits(self, image: int) -> Tensor:
        theta, guidance = (tensor[image, None].float() for tensor in self._inputs[0])
        return reference.patch_decode(theta, guidance, self._x, self._y, self.spec)[0]

    def _reference(self, image: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return one image's logits, its mask and the gap between the two best enlarged logits, all in fp32."""
        logits = self._reference_logits(image)
        enlarged = reference.upsample(logits[None], self.spec.upsample)[0]
        best, mask = enlarged.max(dim=0)
        second = enlarged.scatter_(0, mask[None], -torch.inf).amax(dim=0)
        return logits, mask, best - second


def laid_out(tensor: Tensor, layout: Layout) -> Tensor:
    """Return the same ``(B, C, H, W)`` values in new memory of another layout; padding is NaN."""
    if layout == "nchw":
        return tensor.clone(memory_format=torch.contiguous_format)
    if layout == "channels_last":
        return tensor.clone(memory_format=torch.channels_last)
    batch, channels, rows, columns = tensor.shape
    room = tensor.new_full((batch, rows, columns, -(-channels // 8) * 8), torch.nan)
    room[..., :channels] = tensor.permute(0, 2, 3, 1)
    return room[..., :channels].permute(0, 3, 1, 2)


def _excess(logits: Tensor, wanted: Tensor) -> float:
    """Return by how much logits differ beyond one rounding to their type; NaN counts as infinite."""
    rounding = 0.0 if logits.dtype == torch.float32 else torch.finfo(logits.dtype).eps
    excess = (logits.float() - wanted).abs() - rounding * wanted.abs()
    return float(excess.nan_to_num_(nan=torch.inf).max().clamp_min(0))


def _constants(spec: DecodeSpec) -> tuple[int, int, int, int]:
    return spec.num_classes, spec.hidden, spec.guidance_channels, spec.patch
