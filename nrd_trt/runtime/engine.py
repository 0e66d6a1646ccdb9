"""The one way from a file to masks: a bundle, a checkpoint or an ONNX file, opened and run on images.

`Engine` runs one image after the other on the caller's thread. `nrd_trt.runtime.engine_thread.EngineThread` runs it on
a thread of its own, where runs are begun before the ones ahead of them have ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nrd_trt.data.preprocessing import FittedImage, Fitting, fit_image, fitting_of
from nrd_trt.data.views import ViewFields, Viewing
from nrd_trt.engine.bundle import Bundle, check_no_key, is_bundle, read_bundle
from nrd_trt.errors import ConfigError, ExportError, RunnerError
from nrd_trt.graph.metadata import GraphFacts, load_checked, read_facts
from nrd_trt.machine.device import choose_device
from nrd_trt.model import load_trained
from nrd_trt.runtime.base import Runner
from nrd_trt.runtime.device_arrays import DeviceMask, DeviceRuns
from nrd_trt.runtime.graph_io import Segmentation, batch_feed, image_feed, segmentation_at
from nrd_trt.runtime.openvino_runner import OpenVinoRunner
from nrd_trt.runtime.select import DEFAULT, RunOptions, cpu_runner, make_runner
from nrd_trt.runtime.trt_runner import TrtRunner
from nrd_trt.runtime.viewing import Viewer
from nrd_trt.specs import (
    CheckpointOptions,
    Fit,
    InputShape,
    ModelInfo,
    Provider,
    Resample,
    RunnerName,
    Size,
    check_choice,
    check_size,
    optional_path,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Engine:
    """A runner that takes images and gives masks; not to be shared by threads.

    The runner starts with the first image, or on entering a ``with`` block. It ends with the block, or with the process
    where there is none.

    Args:
        runner: Not entered yet.
        graph: What the file that it runs says about itself.
        fit: How images of other sizes are brought to the engine's size.
        resample: What scales them; see `fit_image`.
        bundle: The bundle that the file belongs to, or None.

    Raises:
        ConfigError: `fit` or `resample` is not known.
    """

    def __init__(
        self,
        runner: Runner,
        graph: GraphFacts,
        *,
        fit: Fit = "resize",
        resample: Resample = "pillow",
        bundle: Bundle | None = None,
    ) -> None:
        check_choice("fit", fit, Fit)
        check_choice("resample", resample, Resample)
        self.runner, self.graph, self.fit, self.resample, self.bundle = runner, graph, fit, resample, bundle
        self._entered = False
        self._device_runs: DeviceRuns | None = None

    @property
    def info(self) -> ModelInfo:
        """Class names, palette and preprocessing."""
        return self.graph.info

    @property
    def runner_name(self) -> str:
        """Name of the backend that runs."""
        return self.runner.name

    @property
    def arithmetic(self) -> str:
        """See `nrd_trt.runtime.base.Runner`; known once an image was run."""
        return self.runner.arithmetic

    @property
    def executed(self) -> Mapping[str, str] | None:
        """Type that each layer with products is executed in, where the runner reads that back; else None."""
        return self.runner.executed if isinstance(self.runner, OpenVinoRunner) else None

    @property
    def plan_ran(self) -> bool | None:
        """Whether the bundle's plan itself runs; None where there is no plan."""
        has_plan = self.bundle is not None and self.bundle.plan_path is not None
        return isinstance(self.runner, TrtRunner) if has_plan else None

    def predict(self, rgb: np.ndarray, **views: Unpack[ViewFields]) -> np.ndarray:
        """Segment one image.

        Args:
            rgb: ``(H, W, 3) uint8 RGB`` of any size.
            **views: How it is looked at: ``protocol=, scales=, flip=, tile=, stride=``, see
                `nrd_trt.data.views.Viewing`; without them it is fitted to the engine's size and run once.

        Returns:
            Class indices ``(H, W) uint8``, owned by the caller.

        Raises:
            ConfigError: The engine cannot look at it so.
            ShapeError: `rgb` is no such array, or too large for an engine with ``fit="pad"``.
            RunnerError: The backend failed.
        """
        return self.segment(rgb, **views).mask

    def segment(self, rgb: np.ndarray, **views: Unpack[ViewFields]) -> Segmentation:
        """Segment one image and tell how sure the network is; arguments and errors are those of `predict`.

        Returns:
            Mask and confidence at the image's size, owned by the caller; the confidence is None where the engine was
            built without that output.
        """
        return Viewer(self, Viewing.of(views)).segment(rgb)

    def predict_device(self, rgb: object, *, stream: int | None = None, out: object | None = None) -> DeviceMask:
        """Segment images that lie on the GPU, without a copy and without the host.

        The run is queued on the stream that `stream`, or else the ``__cuda_array_interface__`` of `rgb`, names; the
        call returns at once, but for the second run with the same addresses, which waits and captures a graph; what is
        queued there afterwards finds the masks complete. Where neither names one, the call returns when the masks are
        complete. Before the run DLPack then lets it wait for the work on `rgb`; without DLPack the call waits for
        everything in the CUDA context.

        Args:
            rgb: ``(h, w, 3)`` or ``(n, h, w, 3) uint8 RGB``, dense, of a size that the engine takes; an array of
                PyCUDA, CuPy, PyTorch or of others with ``__cuda_array_interface__`` or ``__dlpack__``. It must stay as
                it is until the stream has passed the run.
            stream: Handle of the CUDA stream on which `rgb` is ready; 0 and 1 are the default stream.
            out: Takes the masks: a dense uint8 array on the GPU, ``(h, w)`` or ``(n, h, w)``; None takes memory of the
                engine.

        Returns:
            Class indices ``(h, w)`` or ``(n, h, w) uint8`` on the GPU. CuPy, PyTorch and PyCUDA take them without a
            copy. Memory of the engine is valid until its next run, and as long as the engine is open.

        Raises:
            ShapeError: `rgb` or `out` is no such array.
            ConfigError: The engine takes no uint8 images or gives no masks; or a stream is none.
            RunnerError: The runner works on the host, an array is not on its GPU or of another CUDA context, or the run
                failed.
        """
        if self._device_runs is None:
            self.__enter__()
            self._device_runs = DeviceRuns(self.runner, self.graph).__enter__()
        return self._device_runs.run(rgb, stream=stream, out=out)

    def fitting(self, image_hw: Size) -> Fitting:
        """Tell how images of a size go into the engine, and masks back."""
        return fitting_of(image_hw, self.graph.shape, self.fit)

    def fitted(self, rgb: np.ndarray, *, original_hw: Size | None = None) -> FittedImage:
        """Bring an image ``(H, W, 3) uint8 RGB`` of any size to the engine's size; see `fit_image`."""
        return fit_image(
            rgb, self.graph.shape, self.graph.info, self.fit, resample=self.resample, original_hw=original_hw
        )

    def mask(self, image: np.ndarray) -> np.ndarray:
        """Return the mask ``(h, w) uint8`` of an image ``(h, w, 3) uint8 RGB`` that has the engine's size."""
        return self.draw(image).mask

    def draw(self, image: np.ndarray) -> Segmentation:
        """Return mask and confidence of an image ``(h, w, 3) uint8 RGB`` that has the engine's size, at that size."""
        self.__enter__()
        return _of_size(segmentation_at(self.runner.infer(self.feed(image)), 0, self.graph), image)

    def logits(self, image: np.ndarray) -> np.ndarray:
        """Return the logits ``(K, h/s, w/s) float32`` of such an image, for engines with that output."""
        self.__enter__()
        return np.array(self.runner.infer(self.feed(image))["logits"][0])

    def draw_all(self, images: Sequence[np.ndarray]) -> list[Segmentation]:
        """Return what `draw` does of several images; those of one size share runs, as far as the engine goes."""
        self.__enter__()
        done: dict[int, Segmentation] = {}
        of_size: dict[Size, list[int]] = {}
        for index, image in enumerate(images):
            of_size.setdefault(image.shape[:2], []).append(index)
        batch = self.graph.shape.batch
        for found in of_size.values():
            for chunk in (found[first : first + batch.max] for first in range(0, len(found), batch.max)):
                padded = chunk + chunk[-1:] * (batch.min - len(chunk))
                outputs = self.runner.infer(batch_feed(np.stack([images[index] for index in padded]), self.graph))
                for place, index in enumerate(chunk):
                    done[index] = _of_size(segmentation_at(outputs, place, self.graph), images[index])
        return [done[index] for index in range(len(images))]

    def feed(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Return the runner's feed for an image ``(h, w, 3) uint8 RGB`` that has the engine's size."""
        return image_feed(image, self.graph)

    def __enter__(self) -> Engine:
        if not self._entered:
            self.runner.__enter__()
            self._entered = True
        return self

    def __exit__(self, *error: object) -> None:
        self._entered = False
        runs, self._device_runs = self._device_runs, None
        try:
            if runs is not None:
                runs.__exit__(*error)
        finally:
            self.runner.__exit__(*error)


def open_bundle(
    path: Path | str | Bundle,
    *,
    runner: RunnerName = "auto",
    plugin: Path | str | None = None,
    threads: int | None = None,
    cuda: Provider = "driver",
    cuda_graph: bool = True,
    device: int | str | None = None,
    fit: Fit | None = None,
    resample: Resample | None = None,
    verify_key: Path | str | None = None,
) -> Engine:
    """Open a bundle for prediction: ``open_bundle(path).predict(rgb (H, W, 3) uint8) -> (H, W) uint8``.

    Hashes are checked here; the runner starts with the first image, or on entering a ``with`` block.

    Args:
        path: A ``NAME.nrd`` folder, or a bundle that `nrd_trt.build` returned.
        runner: ``"auto"`` takes the plan where this machine can run it; else OpenVINO for int8 and bf16 where it is
            installed and the processor has instructions for them; else ONNX Runtime. ``"openvino"`` by name computes in
            what OpenVINO chooses for the processor, which ``.arithmetic`` tells.
        plugin: Library of a plan that decodes by plugin; None searches for it.
        threads: CPU threads; None leaves the choice to the backend.
        cuda: What a plan's runner calls CUDA by; ``"pycuda"`` is for programs that use PyCUDA, and has no graphs.
        cuda_graph: Whether a plan's runs are captured and replayed as CUDA graphs, which takes less of the CPU's time.
        device: The GPU, by its number among those that this process may use, or by its UUID (``"GPU-…"`` or
            ``"MIG-…"``); None is the first. It is chosen once for a process, before anything in it uses CUDA.
        fit: How images of other sizes are brought to the engine's size; None takes what the bundle was built with.
        resample: Whose bilinear arithmetic scales them: ``"pillow"``, or ``"cv2"``, which does not average where images
            shrink (OpenCV itself is not needed); None takes what the bundle was built with.
        verify_key: File with the public key that must have signed the bundle (`nrd_trt.sign`), Ed25519 in PEM, which is
            verified before anything else of it is read; None takes signed and unsigned ones alike.

    Returns:
        An engine, which is a context manager: leaving its ``with`` block frees what the runner holds.

    Raises:
        ConfigError: An argument is not known, or does not fit the bundle; there is no such device, or another one is in
            use already.
        BundleError: A file of the bundle was changed or is missing, or it is not signed by the key of `verify_key`.
        PluginError: The library asked for is not that of the build, or cannot be used here.
        RunnerError: The runner asked for cannot run the bundle here.
    """
    plugin = optional_path("plugin", plugin)
    run = RunOptions(runner=runner, plugin=plugin, threads=threads, cuda=cuda, cuda_graph=cuda_graph, device=device)
    bundle = read_bundle(path, verify_key=optional_path("verify_key", verify_key))
    return open_engine(bundle, run, fit=fit, resample=resample)


def open_engine(
    path: Path | str | Bundle,
    run: RunOptions = DEFAULT,
    *,
    fit: Fit | None = None,
    resample: Resample | None = None,
    size: Size | None = None,
    options: CheckpointOptions | None = None,
    verify_key: Path | None = None,
) -> Engine:
    """Open a bundle, a checkpoint or an ONNX file for prediction.

    Args:
        path: A ``NAME.nrd`` folder, or one that was opened; a checkpoint, which runs in PyTorch in fp32; or an ONNX
            file of this toolkit, which runs on the CPU.
        run: How it is run; a checkpoint has one runner, an ONNX file those on the CPU, and neither takes a plugin.
        fit: How images of other sizes are brought to the engine's size; None takes what a bundle was built with, and
            ``"resize"`` for other files.
        resample: What scales them; None takes what a bundle was built with, and ``"pillow"`` for other files.
        size: Height and width that a checkpoint runs at, multiples of 32; None takes its own.
        options: What the file of a checkpoint does not tell.
        verify_key: File with the public key that must have signed the bundle at `path`; of one that was opened that was
            verified then.

    Raises:
        ConfigError: An argument is not known, or does not fit the file.
        ShapeError: `size` is not a multiple of 32.
        BundleError: The bundle is damaged or not signed by that key.
        CheckpointError: The checkpoint is absent, unreadable or of another kind.
        ExportError: The ONNX file is absent or was not exported by this toolkit.
        PluginError: The plan's library is not that of the build, or cannot be used here.
        RunnerError: The runner asked for cannot run the bundle here.
    """
    choose_device(run.device)
    if isinstance(path, Bundle):
        built = path.record
        return Engine(
            make_runner(path, run),
            path.graph,
            fit=built.fit if fit is None else fit,
            resample=built.resample if resample is None else resample,
            bundle=path,
        )
    path = Path(path)
    holds_bundle, holds_onnx = is_bundle(path) or path.suffix == ".nrd", path.suffix == ".onnx"
    if (holds_bundle or holds_onnx) and not (size is None and options is None):
        raise ConfigError(
            f"{path}: size and network are fixed in {'a bundle' if holds_bundle else 'an ONNX file'}; leave size= and "
            "what describes a checkpoint out, or give the checkpoint."
        )
    if holds_bundle:
        return open_engine(read_bundle(path, verify_key=verify_key), run, fit=fit, resample=resample)
    check_no_key(path, verify_key)
    if run.plugin is not None:
        raise ConfigError(f"plugin={run.plugin}: expected a bundle whose plan needs it, got {path}; leave it out.")
    own: tuple[RunnerName, ...] = ("onnxruntime", "openvino") if holds_onnx else ("torch",)
    if run.runner not in ("auto", *own):
        raise ConfigError(
            f"runner={run.runner!r}: {path} runs by runner={' or '.join(map(repr, own))} only; build a bundle for "
            "other runners: "
            f"nrd_trt.build({str(path)!r}, 'NAME.nrd')"
        )
    made, graph = _open_onnx(path, run) if holds_onnx else _open_checkpoint(path, run.threads, size, options)
    return Engine(
        made, graph, fit="resize" if fit is None else fit, resample="pillow" if resample is None else resample
    )


def _of_size(drawn: Segmentation, image: np.ndarray) -> Segmentation:
    """Return what has its image's size, or raise `RunnerError`."""
    for name, array in vars(drawn).items():
        if array is not None and array.shape != image.shape[:2]:
            raise RunnerError(
                f"{name}: expected the image's size {image.shape[:2]}, got {array.shape}; export and build the file "
                "again."
            )
    return drawn


def _open_onnx(path: Path, run: RunOptions) -> tuple[Runner, GraphFacts]:
    model = load_checked(path)
    try:
        graph = read_facts(model)
        return cpu_runner(model, graph, run), graph
    except ExportError as exc:
        raise ExportError(f"{path}: {exc}") from exc


def _open_checkpoint(
    path: Path, threads: int | None, size: Size | None, options: CheckpointOptions | None
) -> tuple[Runner, GraphFacts]:
    model = load_trained(path, options)
    from nrd_trt.runtime.torch_runner import TorchRunner  # after `load_trained`, which tells of a missing PyTorch

    size = size or model.info.size_hw
    check_size(size, what="size=")
    graph = GraphFacts(
        info=model.info,
        decode=model.config.decode if model.config.is_nrd else None,
        upsample=model.config.upsample,
        shape=InputShape.static(size),
        input_form="uint8",
        output="both",
        encoder=model.config.encoder,
        head=model.config.head,
    )
    return TorchRunner(model, threads=threads), graph
