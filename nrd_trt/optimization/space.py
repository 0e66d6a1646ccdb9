"""The space of a search: networks, input sizes and precisions, and an entry for each candidate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrd_trt.building.construct import check_build
from nrd_trt.building.request import BuildRequest
from nrd_trt.calibration.calibrator import Calibrator
from nrd_trt.errors import ConfigError
from nrd_trt.model import CheckpointFields, load_model, require_torch
from nrd_trt.optimization.candidates import Candidate, CandidatePrecision
from nrd_trt.optimization.latencies import Clock
from nrd_trt.optimization.search import SMALL_SET, Entry
from nrd_trt.optimization.search_folder import SearchFolder
from nrd_trt.optimization.variants import Variants
from nrd_trt.progress import OnStage
from nrd_trt.specs import PRECISIONS, QUANTIZED, Size, as_path, check_size, format_size, nearest_size

if TYPE_CHECKING:
    from nrd_trt.model.network import Segmentor

_SCALES = (1.0, 0.75, 0.5)
"""Sizes that are searched where none are given, as parts of the network's own."""
_RANDOM_IMAGES = 8


@dataclass(frozen=True, kw_only=True)
class Network:
    """A source: its name, its checkpoint, which a recipe has once the search begins, and the network."""

    name: str
    path: Path
    trained: bool
    model: Segmentor


def find_networks(
    sources: Sequence[Path | str] | Path | str, folder: SearchFolder, options: CheckpointFields
) -> list[Network]:
    """Load every source.

    Raises:
        ConfigError: There is none, one is neither a checkpoint nor a recipe, two have one name, or those that are
            trained draw different classes.
    """
    given = [sources] if isinstance(sources, str | Path) else [*sources]
    networks = [_find_network(source, folder, options) for source in given]
    if not networks:
        raise ConfigError("sources: expected a checkpoint or the name of a recipe, got none; name one.")
    names = [network.name for network in networks]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ConfigError(f"sources: expected a name of its own for each, got {', '.join(twice)} again; rename a file.")
    trained = [network for network in networks if network.trained]
    for network in trained:
        if network.model.info.class_names != trained[0].model.info.class_names:
            counts = (len(one.model.info.class_names) for one in (trained[0], network))
            raise ConfigError(
                f"{network.path}: expected the {next(counts)} classes of {trained[0].path}, got {next(counts)} others; "
                "one mIoU cannot rank both. Search them one by one."
            )
    return networks


def _find_network(source: Path | str, folder: SearchFolder, options: CheckpointFields) -> Network:
    require_torch("searching networks")
    from nrd_trt.model.network import random_network
    from nrd_trt.training.recipes import RECIPES

    path = as_path("sources", source)
    if path.is_file():
        return Network(name=path.stem, path=path, trained=True, model=load_model(path, **options))
    if str(source) not in RECIPES:
        raise ConfigError(
            f"{source}: expected a checkpoint file or the name of a recipe ({', '.join(RECIPES)}), found neither; "
            "check the path or the name."
        )
    recipe = RECIPES[str(source)]
    kept = folder.candidates / f"{recipe.name}.safetensors"
    return Network(name=recipe.name, path=kept, trained=False, model=random_network(recipe.config, recipe.info))


@dataclass(frozen=True, kw_only=True)
class Space:
    """What is searched.

    Attributes:
        networks: The sources.
        sizes: Input sizes; None takes those near each network's own.
        precisions: What candidates are built in.
        calibration: What int8 of trained networks is calibrated on; None where there are none.
        calibrating: How, see `Calibrator`.
    """

    networks: Sequence[Network]
    sizes: tuple[Size, ...] | None
    precisions: tuple[CandidatePrecision, ...]
    calibration: Path | None
    calibrating: Mapping[str, Any]

    def __post_init__(self) -> None:
        for size in self.sizes or ():
            check_size(size, what="sizes=")
        if unknown := [name for name in self.precisions if name not in (*PRECISIONS, "mixed")]:
            raise ConfigError(
                f"precisions={unknown[0]!r}: expected one of {', '.join(map(repr, (*PRECISIONS, 'mixed')))}."
            )
        if not self.precisions or self.sizes == ():
            raise ConfigError("precisions= and sizes=: expected one at the least, got none.")

    def warn_of_same_images(self, request: BuildRequest) -> bool:
        """Warn where int8 is calibrated on the images that it is judged on; return whether it is."""
        if not {*QUANTIZED, "mixed"} & {*self.precisions}:
            return False
        trained = next((network for network in self.networks if network.trained), None)
        return trained is not None and self._calibrator(trained, request).warn_of_same_images()

    def entries(self, request: BuildRequest, folder: SearchFolder, clock: Clock, *, resume: bool) -> list[Entry]:
        """Begin the search: make its folder, and an entry for every candidate.

        Raises:
            ConfigError: The states to go on from are those of other sources or options.
        """
        check_build(replace(request, calibrator=self._calibrator(self.networks[0], request)))
        folder.begin(resume=resume)
        return [
            entry for network in self.networks for entry in self._of_network(network, request, folder, clock, resume)
        ]

    def _of_network(
        self, network: Network, request: BuildRequest, folder: SearchFolder, clock: Clock, resume: bool
    ) -> Iterator[Entry]:
        from nrd_trt.model.checkpoint import save_checkpoint
        from nrd_trt.training.complexity import count_cost

        if not network.trained:
            save_checkpoint(network.model, network.path)
            request = replace(request, data=None, labels=None, options={})
        for size in self._sizes(network.model):
            place = f"{network.name}-{format_size(size)}"
            cost = count_cost(network.model.config, network.model.info, size)
            variants = Variants(
                network.model,
                replace(request, source=network.path, size=size, on_stage=_named(place, request.on_stage)),
                self._calibrator(network, request),
                state_path=folder.states / f"{place}.json",
                resume=resume,
                time_file=clock.quick,
                count=SMALL_SET,
            )
            for precision in dict.fromkeys(self.precisions):
                candidate = Candidate(
                    name=f"{place}-{precision}",
                    source=network.path.name if network.trained else network.name,
                    size=size,
                    precision=precision,
                    gmac=cost.total / 1e9,
                )
                yield Entry(candidate=candidate, variants=variants, cost=cost, trained=network.trained)

    def _sizes(self, model: Segmentor) -> Iterable[Size]:
        height, width = model.info.size_hw
        near = [nearest_size((round(scale * height), round(scale * width))) for scale in _SCALES]
        return dict.fromkeys(near if self.sizes is None else self.sizes)

    def _calibrator(self, network: Network, request: BuildRequest) -> Calibrator:
        shared: dict[str, Any] = {"fit": request.fit, "resample": request.resample, "threads": request.run.threads}
        shared |= {"progress": request.progress}
        if not network.trained or self.calibration is None:
            target = self.calibrating["target"]
            return Calibrator("synthetic", images=_RANDOM_IMAGES, recipe="minmax", target=target, **shared)
        own = self.calibration == request.data
        return Calibrator(
            self.calibration,
            validation=request.data,
            labels=request.labels if own else None,
            ignore_index=request.ignore_index,
            **self.calibrating,
            **shared,
        )


def _named(place: str, on_stage: OnStage) -> OnStage:
    """Return what reports stages with what they are about."""
    return lambda text: on_stage(text if place in text else f"{place}: {text}")
