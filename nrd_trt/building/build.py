"""The verb ``build``: from any source to a validated bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nrd_trt.building.construct import build_bundle
from nrd_trt.building.request import BuildRequest
from nrd_trt.engine.bundle import Bundle
from nrd_trt.engine.compat import ConfigOptions
from nrd_trt.engine.options import OptionValue, option_texts
from nrd_trt.progress import OnMessage, OnStage, silent
from nrd_trt.runtime.select import RunOptions
from nrd_trt.specs import (
    QUANTIZED,
    BuilderName,
    DecodeName,
    Estimator,
    Fit,
    InputForm,
    MaskEncoding,
    OutputName,
    Precision,
    Provider,
    Quantizer,
    Resample,
    RunnerName,
    Size,
    Target,
    as_path,
    optional_path,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nrd_trt.model import CheckpointFields


def build(
    source: Path | str,
    output: Path | str,
    *,
    precision: Precision | None = None,
    size: Size | None = None,
    dynamic: tuple[Size, Size, Size] | None = None,
    batch: int | tuple[int, int, int] | None = None,
    input_form: InputForm | None = None,
    outputs: tuple[OutputName, ...] | None = None,
    mask_encoding: MaskEncoding | None = None,
    calibration: Path | str | None = None,
    recipe: Estimator | None = None,
    images: int | None = None,
    seed: int | None = None,
    memory_mb: float | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    quantizer: Quantizer | None = None,
    target: Target | None = None,
    data: Path | str | None = None,
    labels: Path | str | None = None,
    ignore_index: int | None = None,
    fit: Fit | None = None,
    resample: Resample | None = None,
    checkpoint: Path | str | None = None,
    builder: BuilderName = "auto",
    decode: DecodeName = "auto",
    runner: RunnerName = "auto",
    plugin: Path | str | None = None,
    threads: int | None = None,
    cuda: Provider = "driver",
    cuda_graph: bool = True,
    device: int | str | None = None,
    verify_key: Path | str | None = None,
    workspace_mib: int | None = None,
    optimization_level: int | None = None,
    timing_cache: Path | str | None = None,
    version_compatible: bool = False,
    hardware_compatible: bool = False,
    tf32: bool = False,
    compute_capabilities: Sequence[str] = (),
    builder_options: Mapping[str, OptionValue] | None = None,
    min_agreement: float | None = None,
    max_miou_drop: float | None = None,
    min_class_iou: float | None = None,
    max_class_drop: float | None = None,
    min_border_agreement: float | None = None,
    min_boundary_f: float | None = None,
    force: bool = False,
    progress: bool = True,
    on_stage: OnStage = silent,
    on_message: OnMessage = silent,
    describe: Callable[[str], str] | None = None,
    **options: Unpack[CheckpointFields],
) -> Bundle:
    """Build an engine bundle and prove its masks.

    An ONNX file and a bundle keep the form that they have: `size` to `mask_encoding` are for checkpoints. A bundle is
    rebuilt from its own ONNX file, reference masks and layers, for another builder or machine.

    Args:
        source: A checkpoint, an ONNX file of `nrd_trt.export`, or a bundle.
        output: Where to write the bundle, ``NAME.nrd``.
        precision: Types of the graph. None is ``"fp16"`` for a checkpoint or an fp32 file, and what the file has for
            other files and bundles. ``"int8"`` and ``"fp8"`` need `calibration`, unless ranges ship with the
            checkpoint, as with the zoo's. Plans in fp8 are for GPUs of compute capability 8.9 and later: Ada, Hopper,
            Blackwell, Thor.
        size: ``(h, w)``, multiples of 32; None takes the checkpoint's.
        dynamic: The smallest, the usual and the largest size, in place of `size`.
        batch: Images per call, or their smallest, usual and largest number; None is 1.
        input_form: ``"uint8"``, the default, ``"float"`` or ``"rgb_float"``; see `nrd_trt.export`.
        outputs: Which of ``"mask"``, ``"logits"`` and ``"confidence"`` the graph gives; None is the mask.
        mask_encoding: ``"u8x4"`` packs four pixels in one int32, for the runners of this toolkit only; None is
            ``"uint8"``.
        calibration: Folder of images, a video, ``"synthetic"``, or for int8 and fp8 a file of ranges of
            `nrd_trt.calibrate`.
        recipe: How ranges are estimated, for int8 and fp8; None is ``"percentile"``.
        images: Calibrate on at most this many; None is 100.
        seed: Chooses among more calibration images; None is 0.
        memory_mb: What calibration may fetch at a time, beyond a plain session; None is 2048.
        include: Regular expressions; where there are any, only layers whose name matches one are quantised.
        exclude: Regular expressions; no layer whose name matches one is quantised.
        quantizer: Who places Q/DQ pairs: ``"own"``, the default, or ``"modelopt"``.
        target: What an int8 file is made for. ``"gpu"``, the default: int8 with fp16 beside it, as TensorRT takes it.
            ``"cpu"``: uint8 activations with fp32 beside them, which ONNX Runtime and OpenVINO run several times as
            fast; no TensorRT can build a plan of it, so that the builder is ONNX Runtime.
        data: Folder of images to prove the masks on, or one with ``images/`` and ``labels/``; None takes drawn scenes,
            and of a bundle the inputs that it stores.
        labels: Folder of index PNGs, paired with the images by name; None takes ``data/labels`` where that exists.
        ignore_index: Label value that is not counted, besides 255; None takes the model's.
        fit: How images are brought to the engine's size, recorded in the bundle; None is ``"resize"``, or the bundle's.
        resample: What scales them, see `nrd_trt.open_bundle`, recorded too; None is ``"pillow"``, or the bundle's.
        checkpoint: Reference of a build from an ONNX file or a bundle.
        builder: ``"auto"`` takes the TensorRT that is installed, else ONNX Runtime, which builds no plan.
        decode: ``"auto"`` takes the plugin where it fits, else the function of the ONNX file.
        runner: What draws the masks that are proved. ``"auto"`` is the plan where this machine can run it, else ONNX
            Runtime on the same file; the builder's name asks for the plan, ``"onnxruntime"`` for the file, and so does
            ``"openvino"``, which is refused where it executes a layer in another type than the file's.
        plugin: The plugin library; None looks for it where the decode may use it.
        threads: CPU threads of ONNX Runtime; None leaves the choice to it.
        cuda: See `nrd_trt.open_bundle`.
        cuda_graph: See `nrd_trt.open_bundle`.
        device: See `nrd_trt.open_bundle`.
        verify_key: File with the public key that must have signed the bundle that is the source; see
            `nrd_trt.open_bundle`.
        workspace_mib: Scratch memory that a layer may use; None leaves it to TensorRT.
        optimization_level: Builder effort, 0-5; None leaves it to TensorRT.
        timing_cache: File that is read before the build and written after it.
        version_compatible: The plan loads in later TensorRT versions, too.
        hardware_compatible: The plan loads on other Ampere or later GPUs.
        tf32: Products of fp32 may be computed with factors of 10 bits, which costs masks some agreement. Where ONNX
            Runtime runs the file it imitates that.
        compute_capabilities: GPUs to build for, such as ``"8.9"``; TensorRT-RTX only.
        builder_options: Rarely needed settings of the builder by name, such as ``{"max_aux_streams": 2}``;
            `nrd_trt.doctor` tells what the installed TensorRT takes.
        min_agreement: Gate: share of equal pixels, 0-1; None takes the precision's.
        max_miou_drop: Gate: loss of mIoU against labels, 0-1; None takes the precision's.
        min_class_iou: Gate: IoU with the reference of every class that is not rare, 0-1; None takes the precision's.
        max_class_drop: Gate: loss of IoU against labels of any class that is not rare, 0-1; None takes the precision's.
        min_border_agreement: Gate: share of equal pixels near borders, 0-1; None takes the precision's.
        min_boundary_f: Gate: boundary F-score with the reference, 0-1; None takes the precision's.
        force: Replace an existing bundle.
        progress: Show bars on stderr where something takes over two seconds.
        on_stage: Receives a line when a stage begins.
        on_message: Receives TensorRT's messages as ``(severity, text)``.
        describe: Words the recorded call, which builds the bundle again, in another way than Python's.
        **options: What a checkpoint does not tell, as for `nrd_trt.load_model`.

    Returns:
        The written bundle; ``bundle.passed`` tells whether every gate holds.

    Raises:
        ConfigError: An argument is not known, would be ignored, or excludes another; or the bundle exists.
        NrdTrtError: The input is bad, or a stage cannot be done. Nothing is written in any of these cases.

    Warns:
        UserWarning: Something speaks against the images to calibrate on, see `nrd_trt.calibrate`; or those of `data`
            are exposed otherwise; or int8 or fp8 is calibrated on `data`, which flatters its figures. Or a
            signature is gone, that of the source or of the bundle that was replaced.
    """
    plugin = optional_path("plugin", plugin)
    request = BuildRequest(
        source=as_path("source", source),
        output=as_path("output", output),
        precision=precision,
        size=size,
        dynamic=dynamic,
        batch=batch,
        input_form=input_form,
        outputs=outputs,
        mask_encoding=mask_encoding,
        data=optional_path("data", data),
        labels=optional_path("labels", labels),
        ignore_index=ignore_index,
        fit=fit,
        resample=resample,
        checkpoint=optional_path("checkpoint", checkpoint),
        builder=builder,
        decode=decode,
        run=RunOptions(runner=runner, plugin=plugin, threads=threads, cuda=cuda, cuda_graph=cuda_graph, device=device),
        config=ConfigOptions(
            workspace_mib=workspace_mib,
            optimization_level=optimization_level,
            version_compatible=version_compatible,
            hardware_compatible=hardware_compatible,
            tf32=tf32,
            compute_capabilities=tuple(compute_capabilities),
            builder_options=option_texts(builder_options or {}),
        ),
        timing_cache=optional_path("timing_cache", timing_cache),
        verify_key=optional_path("verify_key", verify_key),
        min_agreement=min_agreement,
        max_miou_drop=max_miou_drop,
        min_class_iou=min_class_iou,
        max_class_drop=max_class_drop,
        min_border_agreement=min_border_agreement,
        min_boundary_f=min_boundary_f,
        force=force,
        progress=progress,
        on_stage=on_stage,
        on_message=on_message,
        describe=describe,
        options=options,
    )
    request = request.calibrated(
        calibration,
        recipe=recipe,
        images=images,
        seed=seed,
        memory_mb=memory_mb,
        include=include,
        exclude=exclude,
        quantizer=quantizer,
        target=target,
    )
    if request.calibrator is not None and precision in QUANTIZED:
        request.calibrator.warn_of_same_images()
    return build_bundle(request)
