"""The engine of a video: a bundle by any of its runners, or a checkpoint in PyTorch."""

from __future__ import annotations

from pathlib import Path

from nrd_trt.engine.bundle import is_bundle, read_bundle
from nrd_trt.errors import ConfigError
from nrd_trt.graph.metadata import GraphFacts
from nrd_trt.model import load_trained
from nrd_trt.runtime.engine_thread import EngineThread
from nrd_trt.runtime.select import make_runner
from nrd_trt.specs import Fit, InputShape, RunnerName
from nrd_trt.video.segmenter import Segmenter


def open_segmenter(
    path: Path,
    *,
    runner: RunnerName = "auto",
    plugin: Path | None = None,
    threads: int | None = None,
    fit: Fit | None = None,
) -> Segmenter:
    """Make the segmenter of a bundle or of a checkpoint; it is not entered.

    Args:
        path: A ``NAME.nrd`` folder, or a checkpoint, which runs in PyTorch at the size that it names.
        runner: See `nrd_trt.runtime.select.make_runner`.
        plugin: Library of a plan that needs one; None looks for it.
        threads: CPU threads; None leaves the choice to the backend.
        fit: How images get the engine's size; None takes the bundle's way.

    Raises:
        ConfigError: An option does not fit.
        BundleError: The bundle is damaged.
        CheckpointError: The checkpoint cannot be read.
        RunnerError: The runner asked for cannot run the bundle here.
    """
    if not (is_bundle(path) or path.suffix == ".nrd"):
        return _of_checkpoint(path, runner, plugin, threads, fit)
    bundle = read_bundle(path)
    made = make_runner(bundle, runner, threads=threads, plugin=plugin)
    return Segmenter(EngineThread(made), bundle.graph, fit or bundle.record.fit)


def _of_checkpoint(
    path: Path, runner: RunnerName, plugin: Path | None, threads: int | None, fit: Fit | None
) -> Segmenter:
    if runner not in ("auto", "torch") or plugin is not None:
        raise ConfigError(
            f"{path}: expected a bundle for --runner {runner} or --plugin, got a checkpoint, which runs in PyTorch; "
            f"build a bundle first: nrd-trt build {path} -o NAME.nrd"
        )
    model = load_trained(path)
    from nrd_trt.runtime.torch_runner import TorchRunner  # after `load_trained`, which tells of a missing PyTorch

    graph = GraphFacts(
        info=model.info,
        decode=model.config.decode if model.config.is_nrd else None,
        upsample=model.config.upsample,
        shape=InputShape.static(model.info.size_hw),
        input_form="uint8",
        output="both",
        encoder=model.config.encoder,
        head=model.config.head,
    )
    return Segmenter(EngineThread(TorchRunner(model, threads=threads)), graph, fit or "resize")
