"""The verb ``optimize``: the best bundle within a budget, over networks, input sizes and precisions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nrd_trt.building.construct import check_build
from nrd_trt.building.request import BuildRequest
from nrd_trt.data.folders import default_labels, list_pairs
from nrd_trt.engine.compat import ConfigOptions
from nrd_trt.engine.options import OptionValue, option_texts
from nrd_trt.errors import ConfigError
from nrd_trt.files import sha256_file
from nrd_trt.optimization.candidates import Budget, CandidatePrecision, front
from nrd_trt.optimization.latencies import Clock, DeviceLatencies
from nrd_trt.optimization.optimize_record import Optimized, record_files
from nrd_trt.optimization.search import Entry, OnCandidate, Search
from nrd_trt.optimization.search_folder import SearchFolder, check_export, export_bundles
from nrd_trt.optimization.space import Network, Space, find_networks
from nrd_trt.progress import OnMessage, OnStage, silent
from nrd_trt.runtime.select import RunOptions
from nrd_trt.specs import (
    BuilderName,
    Estimator,
    Fit,
    InputForm,
    Provider,
    Resample,
    RunnerName,
    Size,
    Target,
    as_path,
    check_number,
    optional_path,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nrd_trt.model import CheckpointFields

_DEFAULT_PRECISIONS: Mapping[Target, tuple[CandidatePrecision, ...]] = {
    "gpu": ("int8", "mixed", "fp16", "fp32"),
    "cpu": ("int8", "mixed", "fp32"),
}


def optimize(
    sources: Sequence[Path | str] | Path | str,
    output: Path | str,
    *,
    data: Path | str | None = None,
    labels: Path | str | None = None,
    ignore_index: int | None = None,
    fit: Fit | None = None,
    resample: Resample | None = None,
    sizes: Sequence[Size] | None = None,
    precisions: Sequence[CandidatePrecision] | None = None,
    max_latency_ms: float | None = None,
    min_fps: float | None = None,
    max_memory_mb: float | None = None,
    min_miou: float | None = None,
    latencies: Path | str | None = None,
    export_candidates: Path | str | None = None,
    trials: int | None = None,
    calibration: Path | str | None = None,
    recipe: Estimator | None = None,
    images: int | None = None,
    seed: int | None = None,
    memory_mb: float | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    target: Target | None = None,
    min_agreement: float | None = None,
    max_miou_drop: float | None = None,
    min_class_iou: float | None = None,
    max_class_drop: float | None = None,
    min_border_agreement: float | None = None,
    min_boundary_f: float | None = None,
    builder: BuilderName = "auto",
    runner: RunnerName = "auto",
    plugin: Path | str | None = None,
    threads: int | None = None,
    cuda: Provider = "driver",
    cuda_graph: bool = True,
    device: int | str | None = None,
    builder_options: Mapping[str, OptionValue] | None = None,
    input_form: InputForm | None = None,
    resume: bool = False,
    force: bool = False,
    progress: bool = True,
    on_stage: OnStage = silent,
    on_candidate: OnCandidate = lambda candidate: None,
    on_message: OnMessage = silent,
    describe: Callable[[str], str] | None = None,
    **options: Unpack[CheckpointFields],
) -> Optimized:
    """Find the best bundle within a budget: of which network, at which input size, in which precision.

    Every candidate is looked at on a few images first. What is beaten by far, or cannot keep to the budget, is left
    out; the others are built and validated on all images as `nrd_trt.build` does it, and timed in turn.

    Args:
        sources: Checkpoints, and names of recipes, which are timed with random weights and never chosen.
        output: Folder to write: ``best.nrd``, the winner; ``optimize.json`` and ``optimize.png``; ``candidates/``, the
            bundles that were built; ``states/``, what a run that was stopped goes on from.
        data: Folder with ``images/`` and ``labels/`` that candidates are judged on; a recipe alone needs none.
        labels: Folder of index PNGs, paired with the images by name; None takes ``data/labels``. Masks are compared
            with them at the size of the images, so that a small input pays for what it loses.
        ignore_index: See `nrd_trt.build`.
        fit: See `nrd_trt.build`.
        resample: See `nrd_trt.build`.
        sizes: Input sizes ``(h, w)``, multiples of 32; None takes each network's own, three quarters and half of it.
        precisions: What is built, from ``"int8"``, ``"mixed"``, ``"fp8"``, ``"fp16"``, ``"bf16"`` and ``"fp32"``; None
            takes int8, mixed and fp32, and for GPUs fp16. Mixed is int8 without the layers that cost most, where int8
            everywhere does not hold its gates.
        max_latency_ms: Budget: largest median from image to mask.
        min_fps: Budget: the same as images per second.
        max_memory_mb: Budget: largest memory, as `nrd_trt.benchmark` tells it of the bundle alone.
        min_miou: Budget: smallest mIoU, 0-1. Without a bound on the latency the fastest candidate that has it wins;
            otherwise the most accurate one.
        latencies: JSON of `nrd_trt.benchmark`, which timed the candidates on the device; None times them here.
        export_candidates: Folder to write the candidates to, to be timed elsewhere; nothing is chosen then.
        trials: Build at most this many candidates, those that look best on a few images; None builds all that are left.
        calibration: See `nrd_trt.build`; None takes `data`, which flatters int8.
        recipe: See `nrd_trt.build`.
        images: See `nrd_trt.build`.
        seed: See `nrd_trt.build`.
        memory_mb: What calibration may fetch at a time; see `nrd_trt.build`.
        include: See `nrd_trt.build`.
        exclude: See `nrd_trt.build`.
        target: See `nrd_trt.build`; None is ``"cpu"`` where latencies are measured here and no plan runs here, else
            ``"gpu"``.
        min_agreement: See `nrd_trt.build`; so the other gates, which every bundle has to hold.
        max_miou_drop: See `nrd_trt.build`.
        min_class_iou: See `nrd_trt.build`.
        max_class_drop: See `nrd_trt.build`.
        min_border_agreement: See `nrd_trt.build`.
        min_boundary_f: See `nrd_trt.build`.
        builder: See `nrd_trt.build`; ``"auto"`` builds plans only where they run.
        runner: What is timed; see `nrd_trt.open_bundle`.
        plugin: See `nrd_trt.build`.
        threads: CPU threads; None leaves the choice to the backends.
        cuda: See `nrd_trt.open_bundle`.
        cuda_graph: See `nrd_trt.open_bundle`.
        device: See `nrd_trt.open_bundle`.
        builder_options: See `nrd_trt.build`.
        input_form: See `nrd_trt.export`; None is ``"uint8"``.
        resume: Go on with the search that lies in `output`; what was measured and built is not done again, also under
            another budget.
        force: Replace an earlier search.
        progress: Show bars on stderr where something takes over two seconds.
        on_stage: Receives a line when a stage begins.
        on_candidate: Receives a candidate whenever more is known of it.
        on_message: Receives TensorRT's messages as ``(severity, text)``.
        describe: See `nrd_trt.build`.
        **options: What the checkpoints do not tell, as for `nrd_trt.load_model`.

    Returns:
        Every candidate with its figures or the reason why it has none, the front and the winner. A budget that nothing
        keeps to is a result: ``.failures`` says how close one can get.

    Raises:
        ConfigError: An argument is not known, would be ignored, or excludes another; the sources have different
            classes, or no labels to be judged by; the latencies are of other files; the folder holds something else,
            or the search of other sources or options.
        NrdTrtError: The input is bad.

    Warns:
        UserWarning: See `nrd_trt.tune`.
    """
    budget = Budget(
        max_latency_ms=_latency_bound(max_latency_ms, min_fps), max_memory_mb=max_memory_mb, min_miou=min_miou
    )
    check_number("trials", trials, low=1)
    folder, export_to = SearchFolder(as_path("output", output)), optional_path("export_candidates", export_candidates)
    networks = find_networks(sources, folder, options)
    run = RunOptions(
        runner=runner,
        plugin=optional_path("plugin", plugin),
        threads=threads,
        cuda=cuda,
        cuda_graph=cuda_graph,
        device=device,
    )
    request = BuildRequest(
        source=networks[0].path,
        output=folder.best,
        input_form=input_form,
        data=optional_path("data", data),
        labels=optional_path("labels", labels),
        ignore_index=ignore_index,
        fit=fit,
        resample=resample,
        builder=builder,
        config=ConfigOptions(builder_options=option_texts(builder_options or {})),
        min_agreement=min_agreement,
        max_miou_drop=max_miou_drop,
        min_class_iou=min_class_iou,
        max_class_drop=max_class_drop,
        min_border_agreement=min_border_agreement,
        min_boundary_f=min_boundary_f,
        run=replace(run, runner="auto" if runner == "openvino" else runner),  # which judges nothing in 16 bits
        force=True,  # of a bundle that an earlier run built and this one cannot use
        progress=progress,
        on_stage=on_stage,
        on_message=on_message,
        describe=describe,
        options=options,
    )
    _check_labels(request, networks)
    clock, request, target = _clock(request, run, networks, target, optional_path("latencies", latencies), export_to)
    if clock.device is not None and max_memory_mb is not None and not clock.device.tells_memory:
        raise ConfigError("max_memory_mb=: the file of latencies= tells no memory; time its bundles one by one.")
    space = Space(
        networks=networks,
        sizes=None if sizes is None else tuple(sizes),
        precisions=_DEFAULT_PRECISIONS[target] if precisions is None else tuple(precisions),
        calibration=optional_path("calibration", calibration) or request.data,
        calibrating={
            "recipe": recipe,
            "images": images,
            "seed": seed,
            "memory_mb": memory_mb,
            "include": include,
            "exclude": exclude,
            "target": target,
        },
    )
    folder.check(resume=resume, force=force)
    if export_to is not None:
        check_export(export_to, force=force)
    on_data = space.warn_of_same_images(request)
    entries = space.entries(request, folder, clock, resume=resume)
    search = Search(
        entries, budget, clock, folder.candidates, trials=trials, progress=progress, on_candidate=on_candidate
    )
    entries = search.run()
    return _finish(entries, budget, clock, folder, target, on_data, export_to, force=force)


def _latency_bound(max_latency_ms: float | None, min_fps: float | None) -> float | None:
    """Return the largest latency, which may be given as images per second."""
    check_number("min_fps", min_fps, low=0, whole=False)
    if min_fps is None:
        return max_latency_ms
    if max_latency_ms is not None:
        raise ConfigError("max_latency_ms= and min_fps= exclude each other: they bound the same.")
    if not min_fps:
        raise ConfigError(f"min_fps={min_fps}: expected a number above 0.")
    return 1000 / min_fps


def _check_labels(request: BuildRequest, networks: Sequence[Network]) -> None:
    """Raise `ConfigError` where trained networks cannot be ranked."""
    if not any(network.trained for network in networks):
        return
    data, folder = request.data, request.labels
    if data is None or (folder is None and default_labels(data) is None):
        raise ConfigError(
            f"data={data}: expected images with labels, as mIoU is what ranks networks and sizes; give data= with "
            "images/ and labels/, or labels=. nrd_trt.tune compares the precisions of one network without labels."
        )
    list_pairs(data, folder)


def _clock(
    request: BuildRequest,
    run: RunOptions,
    networks: Sequence[Network],
    target: Target | None,
    latencies: Path | None,
    export_to: Path | None,
) -> tuple[Clock, BuildRequest, Target]:
    """Tell where latencies come from, what builds, and what int8 is made for."""
    if latencies is not None and export_to is not None:
        raise ConfigError("latencies= and export_candidates= exclude each other: the one is read after the other.")
    plans = check_build(request)
    if target is None:
        target = "gpu" if plans or latencies or export_to else "cpu"
    if request.builder == "auto" and (target == "cpu" or not plans):
        request = replace(request, builder="onnxruntime")
    if latencies is not None:
        hashes = (sha256_file(network.path) for network in networks if network.trained)
        return Clock(kind="device", run=run, device=DeviceLatencies(latencies, hashes)), request, target
    kind: Literal["cpu", "plans", "none"] = "none" if export_to else "plans" if plans and target == "gpu" else "cpu"
    return Clock(kind=kind, run=run), request, target


def _finish(
    entries: Sequence[Entry],
    budget: Budget,
    clock: Clock,
    folder: SearchFolder,
    target: Target,
    calibrated_on_data: bool,
    export_to: Path | None,
    *,
    force: bool,
) -> Optimized:
    """Choose, and write the winner, the record, the picture, and what is exported."""
    bundles = {entry.name: entry.bundle for entry in entries if entry.bundle is not None}
    candidates = tuple(entry.candidate for entry in entries)
    winner = budget.choose(candidates)
    optimized = Optimized(
        candidates=candidates,
        front=tuple(one.name for one in front(candidates)),
        chosen=winner.name if winner else None,
        budget=budget,
        timed=clock.kind,
        target=target,
        calibrated_on_data=calibrated_on_data,
        bundle=folder.keep(bundles[winner.name] if winner else None),
        exported=export_to,
        files=record_files(folder, candidates),
    )
    if export_to is not None:
        export_bundles(bundles.values(), export_to, force=force)
    optimized.write(folder)
    return optimized
