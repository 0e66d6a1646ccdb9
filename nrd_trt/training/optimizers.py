"""Optimisers of a recipe: SGD and AdamW of PyTorch, and Muon for convolution kernels. torch only.

PyTorch's own Muon takes matrices only; the one here reads a kernel ``(out, in, kh, kw)`` as ``(out, in·kh·kw)``.
Measured from scratch on CamVid (MobileNetV2, 400 steps of 8 crops, one seed): validation mIoU 0.52 with Muon, 0.34 with
AdamW.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from nrd_trt.training.recipes import Recipe

_MOMENTUM = 0.95
# Coefficients of the quintic Newton-Schulz iteration of K. Jordan's Muon: five steps bring every singular value of a
# matrix of norm 1 near 1 (measured: 0.68 to 1.14).
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_KEPT = {"SGD": {"momentum_buffer"}, "AdamW": {"step", "exp_avg", "exp_avg_sq"}, "Muon": {"momentum"}}
"""What an optimiser keeps of each parameter."""


def make_optimizers(recipe: Recipe, model: nn.Module) -> list[torch.optim.Optimizer]:
    """Return the optimisers that together train every parameter with ``requires_grad``.

    Each group has its peak learning rate under ``"peak"``, for `set_rate`. Parameters have groups of their own where
    the recipe gives them another rate or decay: the encoder's, those below a ``backbone``, and those that it names.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    shares = {id(parameter): _shares(recipe, name) for name, parameter in named.items()}

    def groups(parameters: Iterable[Tensor], peak: float, **settings: float) -> list[dict[str, Any]]:
        parts: dict[tuple[float, float], list[Tensor]] = {}
        for parameter in parameters:
            parts.setdefault(shares[id(parameter)], []).append(parameter)
        decay = recipe.weight_decay
        return [
            {"params": part, "peak": rate * peak, "weight_decay": kept * decay, **settings}
            for (rate, kept), part in parts.items()
        ]

    if recipe.optimizer == "sgd":
        return [torch.optim.SGD(groups(named.values(), recipe.lr, momentum=0.9), recipe.lr)]
    kernels = list(_hidden_kernels(model)) if recipe.optimizer == "muon" else []
    chosen = {id(kernel) for kernel in kernels}
    others = [parameter for parameter in named.values() if id(parameter) not in chosen]
    adamw = torch.optim.AdamW(groups(others, recipe.lr), recipe.lr)
    if not kernels:
        return [adamw]
    return [adamw, Muon(groups(kernels, recipe.muon_lr), recipe.muon_lr, recipe.weight_decay)]


def _shares(recipe: Recipe, name: str) -> tuple[float, float]:
    """Return which share of learning rate and of weight decay the parameter of a name has."""
    rate, decay = next(((rate, decay) for part, rate, decay in recipe.named_rates if part in name), (1.0, 1.0))
    return rate * (recipe.encoder_rate if "backbone" in name.split(".") else 1.0), decay


def set_rate(optimizers: Iterable[torch.optim.Optimizer], share: float) -> None:
    """Set every group's learning rate to this share of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share


def restore_optimizer(optimizer: torch.optim.Optimizer, stored: dict[str, Any]) -> None:
    """Take up what an optimiser of the same recipe and network kept of each parameter.

    Args:
        optimizer: One of `make_optimizers`. Its groups stay, which are the recipe's.
        stored: What its ``state_dict`` was.

    Raises:
        ValueError: It is that of another optimiser or of other parameters.
    """
    own = optimizer.state_dict()["param_groups"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, kept in stored["state"].items():
        shape = parameters[index].shape
        if kept.keys() != _KEPT[type(optimizer).__name__] or any(
            tensor.shape != (() if name == "step" else shape) for name, tensor in kept.items()
        ):
            raise ValueError(f"parameter {index}: expected what {type(optimizer).__name__} keeps of {tuple(shape)}")
    optimizer.load_state_dict({"state": stored["state"], "param_groups": own})


class Muon(torch.optim.Optimizer):
    """Momentum whose every update is made nearly orthogonal, so that all directions of a kernel learn at one pace."""

    def __init__(self, kernels: Iterable[Any], lr: float, weight_decay: float) -> None:
        super().__init__(list(kernels), {"lr": lr, "peak": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make one step along the gradients."""
        for group in self.param_groups:
            for kernel in group["params"]:
                if kernel.grad is None:
                    continue
                state = self.state[kernel]
                momentum = state.setdefault("momentum", torch.zeros_like(kernel))
                momentum.lerp_(kernel.grad, 1 - _MOMENTUM)
                direction = kernel.grad.lerp(momentum, _MOMENTUM)  # Nesterov's
                matrix = orthogonalised(direction.reshape(len(kernel), -1))
                rows, columns = matrix.shape
                kernel.mul_(1 - group["lr"] * group["weight_decay"])
                kernel.add_(matrix.view_as(kernel), alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def orthogonalised(matrix: Tensor) -> Tensor:
    """Return a matrix with the singular vectors of ``(rows, columns) float32`` and singular values near 1.

    On a GPU products are in bfloat16, which the iteration forgives. Many CPUs have no instructions for it: there they
    would take most of a step.
    """
    a, b, c = _QUINTIC
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / (wide.norm() + 1e-7)
    x = x.bfloat16() if x.is_cuda else x
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x if wide is matrix else x.T
    return result.float().contiguous()


def _hidden_kernels(model: nn.Module) -> Iterable[Tensor]:
    """Kernels between two layers: neither of the image nor of an output (those have a bias), nor grouped."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.bias is None and module.groups == 1 and module.in_channels > 3:
            if module.weight.requires_grad:
                yield module.weight
