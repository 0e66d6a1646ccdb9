"""The plans of the encoders: their blocks, how wide each convolution is and what it is called. No torch.

Widths may be others than an encoder's own, as those of a narrower or a pruned network are. What an encoder has of
blocks, strides and shortcuts never depends on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from nrd_trt.errors import ConfigError

STAGES = 4
"""How many feature maps every encoder gives."""
WIDEST = 2**16
"""More channels than any network has: a file that claims more is damaged."""


@dataclass(frozen=True, kw_only=True)
class Widths:
    """The channels that the convolutions of an encoder give.

    Attributes:
        stem: Those of each convolution before the first stage.
        stages: Those of each stage's map, to which its blocks add; the seven layers of MobileNetV2 count as stages.
        inner: Those of each block's convolutions but the last, block by block. Depthwise ones are left out: they give
            what they take.
    """

    stem: tuple[int, ...]
    stages: tuple[int, ...]
    inner: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class _Names:
    """The names of those convolutions in the encoder; of each stage its first block's last one."""

    stem: tuple[str, ...]
    stages: tuple[str, ...]
    inner: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class ResNetPlan:
    """What distinguishes one ResNet from another; `groups` and `group_width` are ResNeXt's 64x4d."""

    blocks: tuple[int, int, int, int]
    bottleneck: bool
    deep_stem: bool
    groups: int = 1
    group_width: int = 64

    @property
    def own(self) -> Widths:
        """The widths that it was published with."""
        inner: list[tuple[int, ...]] = []
        for stage, blocks in enumerate(self.blocks):
            planes = 64 * 2**stage
            width = planes * self.group_width // 64 * self.groups
            inner += [(width, width) if self.bottleneck else (planes,)] * blocks
        return Widths(
            stem=(32, 32, 64) if self.deep_stem else (64,),
            stages=tuple(64 * 2**stage * (4 if self.bottleneck else 1) for stage in range(STAGES)),
            inner=tuple(inner),
        )

    @property
    def names(self) -> _Names:
        """What the convolutions are called whose widths are told."""
        last = 3 if self.bottleneck else 2
        blocks = [f"layer{stage + 1}.{block}" for stage, count in enumerate(self.blocks) for block in range(count)]
        return _Names(
            stem=("stem.0", "stem.3", "stem.6") if self.deep_stem else ("conv1",),
            stages=tuple(f"layer{stage + 1}.0.conv{last}" for stage in range(STAGES)),
            inner=tuple(tuple(f"{block}.conv{conv}" for conv in range(1, last)) for block in blocks),
        )

    def has_downsample(self, stage: int, block: int) -> bool:
        """Whether a convolution is on a block's shortcut: where the published stages change stride or channels."""
        return block == 0 and (stage > 0 or self.bottleneck)

    def faults(self, widths: Widths) -> Iterator[str]:
        """Yield why the encoder cannot have these widths."""
        if not self.bottleneck and widths.stem[-1] != widths.stages[0]:
            yield f"as many channels after the stem as in the first stage, got {widths.stem[-1]} and {widths.stages[0]}"
        if uneven := [width for block in widths.inner for width in block if width % self.groups]:
            yield f"multiples of {self.groups} in its blocks, whose convolutions have as many groups, got {uneven[0]}"


@dataclass(frozen=True, kw_only=True)
class MobileNetPlan:
    """What distinguishes one MobileNetV2 from another: of each layer expansion, channels and blocks."""

    layers: tuple[tuple[int, int, int], ...]
    stem: int = 32

    @property
    def own(self) -> Widths:
        """The widths that it was published with."""
        return self.widths(self.stem, tuple(channels for _, channels, _ in self.layers))

    def widths(self, stem: int, stages: tuple[int, ...]) -> Widths:
        """Return the widths of a network whose blocks expand what they take as the published ones do."""
        inner: list[tuple[int, ...]] = []
        taken = stem
        for (expand, _, blocks), given in zip(self.layers, stages, strict=True):
            for _ in range(blocks):
                inner.append(() if expand == 1 else (taken * expand,))
                taken = given
        return Widths(stem=(stem,), stages=stages, inner=tuple(inner))

    @property
    def names(self) -> _Names:
        """What the convolutions are called whose widths are told."""
        stages: list[str] = []
        inner: list[tuple[str, ...]] = []
        for index, (expand, _, blocks) in enumerate(self.layers):
            stages.append(f"layer{index + 1}.0.conv.{1 if expand == 1 else 2}.conv")
            for block in range(blocks):
                inner.append(() if expand == 1 else (f"layer{index + 1}.{block}.conv.0.conv",))
        return _Names(stem=("conv1.conv",), stages=tuple(stages), inner=tuple(inner))

    def faults(self, widths: Widths) -> Iterator[str]:
        """Yield why the encoder cannot have these widths: it can have any."""
        yield from ()


@dataclass(frozen=True, kw_only=True)
class TransformerPlan:
    """What distinguishes one transformer encoder from another of its family, stage by stage.

    Attributes:
        channels: Dimension of a stage's tokens.
        depths: Blocks.
        heads: Heads of each block's attention.
        reductions: By how much both sides of the map shrink that global attention looks at.
        mlp_ratio: Width of a perceptron's hidden layer, over `channels`.
        drop_path: Rate at which the last block's branches are dropped in training; it rises linearly from 0.
    """

    channels: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    reductions: tuple[int, int, int, int] = (8, 4, 2, 1)
    mlp_ratio: int = 4
    drop_path: float = 0.1

    embeddings: ClassVar[tuple[str, ...]]
    blocks: ClassVar[tuple[str, ...]]

    @property
    def own(self) -> Widths:
        """The widths that it was published with."""
        return Widths(stem=(), stages=self.channels, inner=())

    @property
    def names(self) -> _Names:
        """What the convolutions are called whose widths are told."""
        return _Names(stem=(), stages=self.embeddings, inner=())

    def faults(self, widths: Widths) -> Iterator[str]:
        """Yield why the encoder cannot have these widths: they are fixed."""
        if widths != self.own:
            yield f"its own, {self.channels}, as those of a transformer are fixed, got {widths.stages}"

    def matches(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Return whether a network's tensors are those of this encoder, by its blocks and their channels."""
        depths = tuple(
            len({name[len(prefix) :].split(".")[0] for name in shapes if name.startswith(prefix)})
            for prefix in (f"backbone.{blocks}." for blocks in self.blocks)
        )
        embeddings = (shapes.get(f"backbone.{name}.weight", (0,))[0] for name in self.embeddings)
        return depths == self.depths and tuple(embeddings) == self.channels


class MitPlan(TransformerPlan):
    """SegFormer's MiT."""

    embeddings = tuple(f"patch_embed{stage + 1}.proj" for stage in range(STAGES))
    blocks = tuple(f"block{stage + 1}" for stage in range(STAGES))


class TwinsPlan(TransformerPlan):
    """Twins-SVT, whose blocks attend within windows and globally in turn."""

    embeddings = tuple(f"patch_embeds.{stage}.proj" for stage in range(STAGES))
    blocks = tuple(f"blocks.{stage}" for stage in range(STAGES))


RESNETS = {
    "resnetv1c18": ResNetPlan(blocks=(2, 2, 2, 2), bottleneck=False, deep_stem=True),
    "resnetv1c34": ResNetPlan(blocks=(3, 4, 6, 3), bottleneck=False, deep_stem=True),
    "resnetv1c50": ResNetPlan(blocks=(3, 4, 6, 3), bottleneck=True, deep_stem=True),
    "resnetv1c101": ResNetPlan(blocks=(3, 4, 23, 3), bottleneck=True, deep_stem=True),
    "resnet50": ResNetPlan(blocks=(3, 4, 6, 3), bottleneck=True, deep_stem=False),
    "resnet101": ResNetPlan(blocks=(3, 4, 23, 3), bottleneck=True, deep_stem=False),
    "resnext101_64x4d": ResNetPlan(blocks=(3, 4, 23, 3), bottleneck=True, deep_stem=False, groups=64, group_width=4),
}
MOBILENETV2 = MobileNetPlan(
    layers=((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
)
_MIT: dict[str, Any] = {"channels": (64, 128, 320, 512), "heads": (1, 2, 5, 8)}
MITS = {
    "mit_b1": MitPlan(depths=(2, 2, 2, 2), **_MIT),
    "mit_b2": MitPlan(depths=(3, 4, 6, 3), **_MIT),
    "mit_b5": MitPlan(depths=(3, 6, 40, 3), **_MIT),
}
TWINS = {
    "twins_svt_large": TwinsPlan(
        channels=(128, 256, 512, 1024), depths=(2, 2, 18, 2), heads=(4, 8, 16, 32), drop_path=0.3
    )
}
TRANSFORMERS: dict[str, TransformerPlan] = {**MITS, **TWINS}
PLANS: dict[str, ResNetPlan | MobileNetPlan | TransformerPlan] = {**RESNETS, "mobilenetv2": MOBILENETV2, **TRANSFORMERS}


def check_widths(encoder: str, widths: Widths) -> None:
    """Raise `ConfigError` unless an encoder can have these widths."""
    plan = PLANS[encoder]
    wanted, got = ((len(found.stem), len(found.stages), tuple(map(len, found.inner))) for found in (plan.own, widths))
    every = (*widths.stem, *widths.stages, *(width for block in widths.inner for width in block))
    fault = None
    if wanted != got:
        fault = f"{wanted[0]} of its stem, {wanted[1]} of its stages and those of {len(wanted[2])} blocks, got others"
    elif not all(1 <= width <= WIDEST for width in every):
        fault = f"1 to {WIDEST} channels everywhere, got {min(every)} to {max(every)}"
    if fault := fault or next(plan.faults(widths), None):
        raise ConfigError(f"widths of {encoder}: expected {fault}.")


def read_widths(encoder: str, shapes: Mapping[str, tuple[int, ...]]) -> Widths | None:
    """Return an encoder's widths by the shapes of a network's tensors; None where it cannot have them, or lacks one."""
    names = PLANS[encoder].names

    def read(layers: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(shapes[f"backbone.{name}.weight"][0] for name in layers)

    try:
        widths = Widths(stem=read(names.stem), stages=read(names.stages), inner=tuple(map(read, names.inner)))
        check_widths(encoder, widths)
    except (KeyError, IndexError, ConfigError):
        return None
    return widths
