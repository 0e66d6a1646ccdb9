"""Structured pruning: which channels of a trained network matter least, and the network without them. torch only.

torch-pruning traces which channels only go together (those that shortcuts add, depthwise convolutions, what is
concatenated) and scores them. How many of each group stay is decided here, by multiply-adds and multiples. The result
is built anew from its configuration, and draws bit for bit what the network draws that was cut; then its batch norms
measure anew what they get from fewer channels.
"""

from __future__ import annotations

import bisect
import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nrd_trt.errors import ConfigError
from nrd_trt.model.heads import NrdHead
from nrd_trt.model.network import Segmentor
from nrd_trt.model.recognise import StoredFacts, recognise
from nrd_trt.optional import require
from nrd_trt.specs import CheckpointOptions
from nrd_trt.training.complexity import count_cost
from nrd_trt.training.objective import Objective
from nrd_trt.training.recipes import Pruning
from nrd_trt.training.samples import Samples

_LEAST = 1 / 4  # of its channels that every group keeps, however little they matter
_TRACED_HW = (64, 96)
_BATCHES = 8
"""How many batches are drawn for gradients, and for the statistics of batch norms."""


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Channels that only go together.

    Attributes:
        root: The convolution that gives them, and what cuts them there.
        scores: ``(channels / parts,) float32``, how much each matters; their mean is 1.
        parts: Groups of a grouped convolution, which stay equally large.
        members: The convolutions that give them or take them, by name and axis of their weights.
    """

    root: tuple[nn.Module, Any]
    scores: Tensor
    parts: int
    members: frozenset[tuple[str, int]]

    def kept(self, threshold: float, round_to: int) -> int:
        """Return how many channels of each part stay: those of a higher score, a multiple, and at least a share."""
        count = len(self.scores)
        step = math.lcm(round_to, self.parts) // self.parts
        wanted = max(int((self.scores > threshold).sum()), math.ceil(_LEAST * count))
        return min(math.ceil(wanted / step) * step, count)

    def removed(self, threshold: float, round_to: int) -> int:
        """Return how many channels go."""
        return (len(self.scores) - self.kept(threshold, round_to)) * self.parts

    def least(self, count: int) -> list[int]:
        """Return the channels that matter least, `count` in all."""
        part = self.scores.argsort()[: count // self.parts]
        return sorted(int(index) + part_index * len(self.scores) for part_index in range(self.parts) for index in part)


def pruned(model: Segmentor, how: Pruning, samples: Samples) -> Segmentor:
    """Return a network without the channels that matter least.

    What decides of theta and guidance stays: their channels are the decode's.

    Args:
        model: With an NRD head, in evaluation mode, on the CPU; stays as it is.
        how: The share of multiply-adds to keep, what scores channels, and of what their numbers are multiples.
        samples: What ``"taylor"`` takes the loss on, by their recipe, and what batch norms are measured on.

    Returns:
        The network, in evaluation mode, of at most that share of multiply-adds at the model's own size.

    Raises:
        MissingDependencyError: torch-pruning is not installed.
        ConfigError: The share cannot be reached, or nothing is left to remove.
    """
    torch_pruning = require("torch_pruning", extra="prune", purpose="pruning")
    cut = copy.deepcopy(model).requires_grad_(True)  # without gradients there is no trace, and nothing is pruned
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    if how.importance == "taylor":
        _take_gradients(cut, samples)
        importance = torch_pruning.importance.GroupTaylorImportance()
    graph = torch_pruning.DependencyGraph().build_dependency(cut, torch.zeros(1, 3, *_TRACED_HW), forward_fn=_outputs)
    groups = list(_groups(graph, cut, importance))
    threshold = _threshold(groups, model, how)
    for group in groups:
        if count := group.removed(threshold, how.round_to):
            graph.get_pruning_group(*group.root, group.least(count)).prune()
    made = _rebuilt(model, cut)
    if not cost(made) <= how.keep * cost(model):
        raise ConfigError(
            f"keep={how.keep:g}: expected fewer multiply-adds, got {cost(made)} of {cost(model)}: nothing was removed; "
            "lower it."
        )
    _measure_anew(made, samples)
    return made


def cost(model: Segmentor) -> int:
    """Return a network's multiply-adds at its own size."""
    return count_cost(model.config, model.info, model.info.size_hw).total


def _outputs(model: Segmentor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Run a network up to its decode, whose inputs are no channels to prune."""
    head, features = _nrd_head(model), model.features(images)
    return head.theta(features[-1]), head.guidance(features[0])


def _nrd_head(model: Segmentor) -> NrdHead:
    if not isinstance(model.decode_head, NrdHead):
        raise ConfigError(f"head {model.config.head!r}: expected an NRD head, the channels of others are not pruned.")
    return model.decode_head


def _take_gradients(model: Segmentor, samples: Samples) -> None:
    """Add up the gradients of the loss over some batches."""
    recipe = samples.recipe
    weights = torch.from_numpy(samples.class_weights()) if recipe.weigh_classes else None
    objective = Objective(model, replace(recipe, aux_weight=0.0, frozen_stages=0), weights).eval()
    for batch in range(_BATCHES):
        images, labels = map(torch.from_numpy, samples.batch(batch * recipe.batch, recipe.batch))
        objective(images, labels)[0].backward()


@torch.no_grad()
def _measure_anew(model: Segmentor, samples: Samples) -> None:
    """Let batch norms take mean and variance from some batches.

    Measured with R18 at 58 % of its multiply-adds, before any training, on every fourth validation frame of CamVid:
    mIoU 0.10 without this and 0.56 with it.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    model.train()
    for batch in range(_BATCHES):
        model(torch.from_numpy(samples.batch(batch * samples.recipe.batch, samples.recipe.batch)[0]))
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _groups(graph: Any, model: Segmentor, importance: Any) -> Iterator[_Group]:
    """Yield the groups of channels that may go."""
    names = {module: name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    head = _nrd_head(model)
    of_decode = [
        [module for module in part.modules() if isinstance(module, nn.Conv2d)][-1]
        for part in (head.classifier, head.c1_bottleneck)
    ]
    for group in graph.get_all_groups(ignored_layers=of_decode, root_module_types=[nn.Conv2d]):
        members: set[tuple[str, int]] = set()
        parts = 1
        for dependency, _ in group:
            layer = dependency.target.module
            if layer in names:
                gives = graph.is_out_channel_pruning_fn(dependency.handler)
                members.add((names[layer], 0 if gives else 1))
                parts = max(parts, layer.groups if layer.groups < layer.out_channels else 1)
        root = group[0].dep
        scores = importance(group).view(parts, -1).mean(0)
        yield _Group(root=(root.target.module, root.handler), scores=scores, parts=parts, members=frozenset(members))


def _threshold(groups: Sequence[_Group], model: Segmentor, how: Pruning) -> float:
    """Return the lowest score above which channels stay so that the network keeps its share of multiply-adds."""
    scores: list[float] = sorted({0.0, *torch.cat([group.scores for group in groups]).tolist()})
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    before = count_cost(model.config, model.info, model.info.size_hw)
    macs = {name: count for name, count in before.layers.items() if name in layers}

    def share(threshold: float) -> float:
        """Count what is left of what each convolution gives and takes; a depthwise one takes what it gives."""
        left = {(name, axis): 1.0 for name in macs for axis in (0, 1)}
        for group in groups:
            for name, axis in group.members:
                channels = layers[name].in_channels if axis else layers[name].out_channels
                left[name, axis] -= group.removed(threshold, how.round_to) / channels
        gone = sum(count * (1 - left[name, 0] * left[name, 1]) for name, count in macs.items())
        return 1 - gone / before.total

    if (lowest := share(scores[-1])) > how.keep:
        raise ConfigError(
            f"keep={how.keep:g}: expected {math.ceil(lowest * 1000) / 1000:g} or more, as every layer keeps a quarter "
            f"of its channels and a multiple of {how.round_to}, and the decode all of its own; give a higher share."
        )
    return scores[bisect.bisect_left(range(len(scores)), True, key=lambda index: share(scores[index]) <= how.keep)]


def _rebuilt(model: Segmentor, cut: Segmentor) -> Segmentor:
    """Build a network from the shapes of one that was cut, as loading one does, and give it the weights."""
    unused = tuple(f"{name}." for name, module in cut.named_modules() if module in cut.unused_modules())
    state = {name: tensor for name, tensor in cut.state_dict().items() if not name.startswith(unused)}
    kept = ("num_classes", "hidden", "patch", "dilations", "output_stride")
    facts = StoredFacts(**{name: getattr(model.config, name) for name in kept})
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    made = Segmentor(recognise(shapes, facts, CheckpointOptions()), model.info)
    for module in made.unused_modules():
        for parameter in module.parameters():
            nn.init.zeros_(parameter)
    made.load_state_dict({**made.state_dict(), **state})
    made.eval().requires_grad_(False)
    images = torch.randn(1, 3, *_TRACED_HW, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if not torch.equal(made(images), cut(images)):
            raise RuntimeError(f"the network that was built anew as {made.config} draws other logits than the cut one")
    return made
