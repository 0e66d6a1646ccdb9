"""Transformer encoders under the names of their released checkpoints: SegFormer's MiT and Twins-SVT. torch only.

Written from facts about the networks, not from their code. Each encoder maps ``(N, 3, H, W) float32, normalised`` to
four maps of strides 4, 8, 16 and 32, those after the last layer norm of each stage; `nrd_trt.model.plans` has their
dimensions. Tokens are the pixels of a map, row by row: ``(N, h·w, C)``. Attention is written as two products and a
softmax, the form that TensorRT fuses.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from nrd_trt.errors import ConfigError
from nrd_trt.model.plans import STAGES, MitPlan, TwinsPlan, Widths
from nrd_trt.specs import STRIDE

Size = tuple[int, int]
_EPS = 1e-6
"""Of the layer norms of blocks and stages; the others have PyTorch's 1e-5."""
_WINDOW = 7
_MASKED = -1000.0
"""What is added to the score of a pair of which one is padding."""


def to_tokens(features: Tensor) -> Tensor:
    """Map ``(N, C, h, w)`` to ``(N, h·w, C)``."""
    return features.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, size_hw: Size) -> Tensor:
    """Map ``(N, h·w, C)`` to ``(N, C, h, w)``."""
    return torch.unflatten(tokens.transpose(1, 2), 2, size_hw)


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return what each query gathers of the values: ``(…, n, d)``, ``(…, k, d)`` and ``(…, k, d)`` to ``(…, n, d)``."""
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-2, -1)
    if mask is not None:
        scores = scores + mask
    gathered: Tensor = scores.softmax(dim=-1) @ values
    return gathered


class DropPath(nn.Module):
    """Drop a residual branch of whole images at random in training; `rate` is the share that is dropped."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, …)``, what is kept scaled so that its mean stays."""
        if not self.training or not self.rate:
            return x
        kept = torch.rand((len(x), *(1,) * (x.ndim - 1)), device=x.device) >= self.rate
        return x * kept / (1 - self.rate)


class PatchEmbed(nn.Module):
    """A strided convolution and a layer norm: the tokens that a stage begins with."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, kernel, stride, padding)
        self.norm = nn.LayerNorm(channels)

    def forward(self, features: Tensor) -> tuple[Tensor, Size]:
        """Map ``(N, in_channels, H, W)`` to tokens ``(N, h·w, channels)`` and ``(h, w)``."""
        features = self.proj(features)
        return self.norm(to_tokens(features)), (features.shape[2], features.shape[3])


class GlobalAttention(nn.Module):
    """Every token attends to all of them, their map reduced by a strided convolution where `reduction` is above 1."""

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        self.sr: nn.Conv2d | None = None
        if reduction > 1:
            self.sr = nn.Conv2d(channels, channels, reduction, reduction)
            self.norm = nn.LayerNorm(channels)

    def forward(self, tokens: Tensor, size_hw: Size) -> Tensor:
        """Map ``(N, h·w, C)`` to ``(N, h·w, C)``."""
        seen = tokens if self.sr is None else self.norm(to_tokens(self.sr(to_map(tokens, size_hw))))
        queries = torch.unflatten(self.q(tokens), 2, (self.heads, -1)).transpose(1, 2)
        keys, values = torch.unflatten(self.kv(seen), 2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        return self.proj(attend(queries, keys, values).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class WindowAttention(nn.Module):
    """Tokens attend within windows of 7x7; a map is padded with zeros to whole windows at its right and lower border.

    Padding is masked. The authors' code leaves it unmasked where exactly one side needs padding, as the slice of the
    other side's flags, ``[-0:]``, is all of them; `fix_mask` masks it there, too.
    """

    def __init__(self, channels: int, heads: int, *, fix_mask: bool) -> None:
        super().__init__()
        self.heads, self.fix_mask = heads, fix_mask
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor, size_hw: Size) -> Tensor:
        """Map ``(N, h·w, C)`` to ``(N, h·w, C)``."""
        (height, width), (rows, columns) = size_hw, self._grid(size_hw)
        x = self._padded(torch.unflatten(tokens, 1, size_hw))
        qkv = self._windows(self.qkv(x), rows, columns)  # (N, rows·columns, 49, 3·C)
        queries, keys, values = torch.unflatten(qkv, 3, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5).unbind()
        mask = self._mask(size_hw).to(x) if self._is_masked(size_hw) else None
        x = attend(queries, keys, values, mask).transpose(2, 3).flatten(3)  # (N, rows·columns, 49, C)
        x = x.reshape(len(x), rows, columns, _WINDOW, _WINDOW, -1).transpose(2, 3)
        x = x.flatten(3, 4).flatten(1, 2)[:, :height, :width].flatten(1, 2)
        return self.proj(x)  # type: ignore[no-any-return]

    def _is_masked(self, size_hw: Size) -> bool:
        """Whether there is padding, and it is masked."""
        padded = [side % _WINDOW != 0 for side in size_hw]
        return any(padded) if self.fix_mask else all(padded)

    @staticmethod
    def _grid(size_hw: Size) -> Size:
        """Return how many windows there are in a column and in a row."""
        rows, columns = ((side + _WINDOW - 1) // _WINDOW for side in size_hw)
        return rows, columns

    def _padded(self, x: Tensor, value: float = 0.0) -> Tensor:
        """Pad ``(N, H, W, C)`` to whole windows."""
        height, width = x.shape[1], x.shape[2]
        rows, columns = self._grid((height, width))
        return functional.pad(x, (0, 0, 0, columns * _WINDOW - width, 0, rows * _WINDOW - height), value=value)

    @staticmethod
    def _windows(x: Tensor, rows: int, columns: int) -> Tensor:
        """Map ``(N, H, W, C)`` to its windows ``(N, rows·columns, 49, C)``."""
        x = x.reshape(len(x), rows, _WINDOW, columns, _WINDOW, -1).transpose(2, 3)
        return x.flatten(3, 4).flatten(1, 2)

    def _mask(self, size_hw: Size) -> Tensor:
        """Return ``(rows·columns, 1, 49, 49) float32``: what is added to the scores of a window's pairs."""
        flags = self._windows(self._padded(torch.zeros(1, *size_hw, 1), 1.0), *self._grid(size_hw))[0, :, :, 0]
        return (flags[:, None, :, None] - flags[:, None, None, :]).square() * _MASKED


class Mlp(nn.Module):
    """Two linear layers with GELU between them, in MiT after a depthwise convolution of the map."""

    def __init__(self, channels: int, hidden: int, *, depthwise: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.dwconv: nn.Module | None = None
        if depthwise:
            self.dwconv = nn.Sequential(OrderedDict(dwconv=nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden)))
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, tokens: Tensor, size_hw: Size) -> Tensor:
        """Map ``(N, h·w, C)`` to ``(N, h·w, C)``."""
        x = self.fc1(tokens)
        if self.dwconv is not None:
            x = to_tokens(self.dwconv(to_map(x, size_hw)))
        return self.fc2(self.act(x))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and perceptron, each after a layer norm and added to what it took."""

    def __init__(self, channels: int, attention: nn.Module, mlp: Mlp, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, _EPS)
        self.attn = attention
        self.norm2 = nn.LayerNorm(channels, _EPS)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, size_hw: Size) -> Tensor:
        """Map ``(N, h·w, C)`` to ``(N, h·w, C)``."""
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens), size_hw))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens), size_hw))  # type: ignore[no-any-return]


class PositionGenerator(nn.Module):
    """What tells Twins' tokens where they are: a depthwise convolution of their map, added to it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1, groups=channels))

    def forward(self, tokens: Tensor, size_hw: Size) -> Tensor:
        """Map ``(N, h·w, C)`` to ``(N, h·w, C)``."""
        return tokens + to_tokens(self.proj(to_map(tokens, size_hw)))


class MixTransformer(nn.Module):
    """MiT, SegFormer's encoder."""

    def __init__(self, plan: MitPlan, output_stride: int = STRIDE, widths: Widths | None = None) -> None:
        super().__init__()
        _check_own(output_stride, widths)
        self.channels = plan.channels
        rates = _rates(plan)
        in_channels = 3
        for stage, channels in enumerate(plan.channels):
            kernel, stride = (3, 2) if stage else (7, 4)
            self.add_module(f"patch_embed{stage + 1}", PatchEmbed(in_channels, channels, kernel, stride, kernel // 2))
            blocks = nn.ModuleList()
            for _ in range(plan.depths[stage]):
                attention = GlobalAttention(channels, plan.heads[stage], plan.reductions[stage])
                mlp = Mlp(channels, plan.mlp_ratio * channels, depthwise=True)
                blocks.append(Block(channels, attention, mlp, next(rates)))
            self.add_module(f"block{stage + 1}", blocks)
            self.add_module(f"norm{stage + 1}", nn.LayerNorm(channels, _EPS))
            in_channels = channels

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the four feature maps, strides 4 to 32."""
        x, features = images, []
        for stage in range(1, STAGES + 1):
            tokens, size_hw = self.get_submodule(f"patch_embed{stage}")(x)
            for block in self.get_submodule(f"block{stage}").children():
                tokens = block(tokens, size_hw)
            x = to_map(self.get_submodule(f"norm{stage}")(tokens), size_hw)
            features.append(x)
        return tuple(features)


class Twins(nn.Module):
    """Twins-SVT: windowed and global attention in turn; `WindowAttention` tells of the mask."""

    def __init__(
        self,
        plan: TwinsPlan,
        output_stride: int = STRIDE,
        widths: Widths | None = None,
        *,
        fix_window_mask: bool = False,
    ) -> None:
        super().__init__()
        _check_own(output_stride, widths)
        self.channels = plan.channels
        self.fix_window_mask = fix_window_mask
        rates = _rates(plan)
        self.patch_embeds, self.blocks = nn.ModuleList(), nn.ModuleList()
        self.pos_block, self.norm_list = nn.ModuleList(), nn.ModuleList()
        in_channels = 3
        for stage, channels in enumerate(plan.channels):
            stride = 2 if stage else 4
            self.patch_embeds.append(PatchEmbed(in_channels, channels, stride, stride, 0))
            blocks = nn.ModuleList()
            for index in range(plan.depths[stage]):
                attention = (
                    GlobalAttention(channels, plan.heads[stage], plan.reductions[stage])
                    if index % 2
                    else WindowAttention(channels, plan.heads[stage], fix_mask=fix_window_mask)
                )
                mlp = Mlp(channels, plan.mlp_ratio * channels, depthwise=False)
                blocks.append(Block(channels, attention, mlp, next(rates)))
            self.blocks.append(blocks)
            self.pos_block.append(PositionGenerator(channels))
            self.norm_list.append(nn.LayerNorm(channels, _EPS))
            in_channels = channels

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the four feature maps, strides 4 to 32."""
        if not self.fix_window_mask and sum(side % (STRIDE * _WINDOW) == 0 for side in images.shape[2:]) == 1:
            warnings.warn(
                f"{images.shape[2]}x{images.shape[3]}: exactly one side is a multiple of {STRIDE * _WINDOW}, where the "
                "authors' code leaves the padding of Twins' windows unmasked, and so does this; masks as it was meant "
                "with fix_window_mask=True, other sizes need neither.",
                stacklevel=2,
            )
        x, features = images, []
        stages = zip(self.patch_embeds, self.blocks, self.pos_block, self.norm_list, strict=True)
        for embed, blocks, position, norm in stages:
            tokens, size_hw = embed(x)
            for index, block in enumerate(blocks.children()):
                tokens = block(tokens, size_hw)
                if index == 0:
                    tokens = position(tokens, size_hw)
            x = to_map(norm(tokens), size_hw)
            features.append(x)
        return tuple(features)


def _rates(plan: MitPlan | TwinsPlan) -> Iterator[float]:
    """Yield the rate of each block's `DropPath`, from 0 to the plan's largest."""
    last = max(1, sum(plan.depths) - 1)
    yield from (plan.drop_path * index / last for index in range(last + 1))


def _check_own(output_stride: int, widths: Widths | None) -> None:
    """Raise `ConfigError` where a transformer is asked for another stride or other widths than it has."""
    if output_stride != STRIDE:
        raise ConfigError(f"output stride: expected {STRIDE} of a transformer encoder, got {output_stride}.")
    if widths is not None:
        raise ConfigError("widths: expected a transformer encoder's own, got others; they cannot be changed.")
