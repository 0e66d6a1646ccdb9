"""The verb ``inspect``: what a bundle, a plan or an ONNX file holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nrd_trt.cli import common, groups
from nrd_trt.cli.flags import translated
from nrd_trt.specs import QUANTIZED

if TYPE_CHECKING:
    from nrd_trt.engine.bundle import Origin
    from nrd_trt.engine.record import BundleRecord, PluginRecord
    from nrd_trt.graph.metadata import GraphFacts
    from nrd_trt.inspection.inspect import Inspection, PluginLayers
    from nrd_trt.inspection.onnx_summary import OnnxSummary, TensorSummary
    from nrd_trt.inspection.plan_summary import PlanSummary

_LABEL = 16
_TITLES = {"bundle": "bundle", "plan": "TensorRT plan", "onnx": "ONNX file"}
_LAYERS_FROM = {
    "plan": "of the plan, as built",
    "build": "of the network as the builder parsed it, before it fused layers",
    "onnx": "nodes of the ONNX file",
}
_NORMALISED = {
    "uint8": "; in the graph, give uint8 RGB",
    "rgb_float": "; in the graph, give planar float32 RGB in 0-255",
    "float": "; before the graph",
}
Lines = Iterator[tuple[str, str | None]]


def inspect_command(
    *,
    path: Annotated[Path, typer.Argument(metavar="NAME.nrd|PLAN|m.onnx", help="What to look into.")],
    plugin: common.Plugin = None,
    verify_key: common.VerifyKey = None,
    layers: Annotated[bool, typer.Option("--layers", help="List every layer, not only their numbers.")] = False,
    out: groups.OutputOptions,
) -> None:
    """Show layers, types, sizes and precision of a bundle, a plan or an ONNX file.

    A plan is opened where this machine can, which runs it as code: look into what you trust.
    """
    from nrd_trt import inspect

    found = inspect(path, plugin=plugin, verify_key=verify_key, on_message=out.on_message)
    if out.as_json:
        common.print_json(found.to_dict())
    else:
        _print(found, every_layer=layers)


def _print(found: Inspection, *, every_layer: bool) -> None:
    bundle = found.bundle
    intact = "; every hash of its bundle holds" if bundle else ""
    common.say(f"{found.path}: {_TITLES[found.kind]}, {_size(found.bytes)}{intact}")
    common.say(_signed_by(bundle.origin) if bundle else f"SHA-256 {found.sha256}")
    if bundle:
        for line in common.headline(bundle.record.validation.warnings):
            common.say(line)
        _section("Made", _made(bundle.record))
        hashes = sorted(bundle.record.files.items())
        _section(
            "Files", ((name, f"{_size(bundle.sizes[name]):>9}   SHA-256 {_short(digest)}") for name, digest in hashes)
        )
        _section("Masks", _masks(bundle.record))
    if found.plan:
        _section("Plan", _plan(found.plan, bare=bundle is None))
    _section("Precision", _precision(found))
    if found.onnx:
        _section("Network", _network(found.onnx.metadata, bundle.record if bundle else None))
        _section("ONNX file", _onnx(found.onnx))
    _layers(found, every_layer=every_layer)


def _signed_by(origin: Origin | None) -> str:
    if origin is None:
        return "unsigned: whoever wrote a file could write its hash too"
    claim = "" if origin.verified else ", as it says; --verify-key verifies it"
    return f"signed by {origin.fingerprint}{claim}"


def _made(record: BundleRecord) -> Lines:
    builder, checkpoint = record.builder, record.checkpoint
    source = (checkpoint and checkpoint.name) or "an ONNX file"
    digest = f", SHA-256 {_short(checkpoint.sha256)}" if checkpoint and checkpoint.sha256 else ""
    yield "from", f"{source}{digest}"
    made = f"{builder.name} {builder.version}" if builder.version else "ONNX Runtime: no plan"
    decode = {"plugin": "; decode by the plugin", "onnx": "; decode by the function", "none": ""}[record.decode]
    yield "builder", f"{made}; nrd_trt {record.nrd_trt} on {builder.os} {builder.machine}{decode}"
    if builder.version:
        targets = ", ".join(builder.compute_capabilities) or _default_targets(builder.name)
        gpu = builder.gpu or "not recorded"
        cores = f" with {builder.multiprocessors} multiprocessors" if builder.multiprocessors else ""
        yield "for", f"GPU {gpu}{cores}, driver {builder.driver or '–'}; targets {targets}"
    yield "TF32", {True: "allowed", False: "off", None: "not recorded; TensorRT's default allows it"}[builder.tf32]
    if builder.builder_options:
        yield "builder options", ", ".join(f"{name}={value}" for name, value in builder.builder_options.items())
    yield "rebuild with", record.command


def _default_targets(builder: str) -> str:
    from nrd_trt.engine.compat import RTX_DEFAULT_TARGETS

    return f"{', '.join(RTX_DEFAULT_TARGETS)} and later" if builder == "tensorrt-rtx" else "not recorded"


def _masks(record: BundleRecord) -> Lines:
    validation, parity, gates = record.validation, record.parity, record.validation.gates
    yield "verdict", "passed" if record.passed else f"NOT PASSED: {'; '.join(validation.failures)}"
    yield (
        "agreement",
        f"{common.fraction(validation.pixel_agreement)} of the pixels with {validation.reference} on "
        f"{validation.images} {validation.samples} (gate {gates.min_agreement})",
    )
    plan_ran = validation.plan_ran if record.builder.version else None
    yield "run by", common.run_by(validation.runner, validation.arithmetic, plan_ran)
    if validation.miou_engine is not None:
        engine, reference = common.fraction(validation.miou_engine), common.fraction(validation.miou_reference)
        yield "mIoU", f"{engine}, reference {reference} (gate: at most {gates.max_miou_drop} lost)"
    yield from (("also gated", f"{name} {figure}") for name, figure in common.finer_gates(validation, gates))
    if validation.structure is not None:
        yield "structure", common.structure_line(validation.structure)
    if parity:
        largest = "" if parity.max_abs is None else f"; largest logit difference {parity.max_abs:.3g}"
        yield "export", f"{parity.agreement:.4f} of the pixels agree{largest}"


def _plan(plan: PlanSummary, *, bare: bool) -> Lines:
    yield "made for", f"{plan.flavour} {plan.version or 'of a version that its header does not tell'}"
    if plan.opened:
        yield "opened with", plan.opened_with
        for title, tensors in (("input", plan.inputs), ("output", plan.outputs)):
            for tensor in tensors or ():
                yield title, _tensor(tensor)
        yield "scratch memory", _size(plan.device_memory_bytes or 0)
        return
    yield "not opened", translated(plan.why_not or "", {})
    if bare:
        yield (
            "to see more",
            "give the bundle folder that it came from, or open it on a machine with the GPU that it was built for: "
            f"{'trtexec' if plan.flavour == 'tensorrt' else 'tensorrt_rtx'} --loadEngine={plan.path}",
        )


def _precision(found: Inspection) -> Lines:
    precision = found.precision
    if found.kind != "plan" or found.bundle:
        yield "asked", precision.asked or "not told"
    yield "found", _counts(precision.found or found.types) or "not known without opening it"
    target = getattr(precision, "target", None)  # a bundle's
    if target and precision.asked in QUANTIZED:
        yield "made for", f"a {target.upper()}"
    if found.on_cpu:
        yield "on this CPU", f"by {found.on_cpu.runner}, in {' and '.join(found.on_cpu.types)}"
    if precision.kept_fp32 is not None:
        yield "kept in fp32", ", ".join(precision.kept_fp32) or "nothing"
    if found.plan:
        yield "formats", _counts(found.formats) or "known only of an opened plan"
    for number, profile in enumerate(found.profiles or ()):
        for name, sizes in profile.items():
            low, opt, high = _by(sizes.min), _by(sizes.opt), _by(sizes.max)
            range_of = f"{opt}, fixed" if low == high else f"{low} to {high}, best at {opt}"
            yield f"profile {number}", f"{name} {range_of}"
    if found.plugin:
        yield from (("plugin", line) for line in _with_plugin(found.plugin))
    else:
        yield "plugin", _without_plugin(found)


def _with_plugin(plugin: PluginRecord | PluginLayers) -> Iterator[str]:
    """Say what is known of the plugin: of a bundle its library, of a plan alone its layers."""
    from nrd_trt.inspection.inspect import PluginLayers

    if isinstance(plugin, PluginLayers):
        yield f"runs {', '.join(plugin.layers)}; a plan alone does not tell of which library"
        return
    code = [*(f"sm_{sm}" for sm in plugin.architectures), *(f"compute_{sm}" for sm in plugin.ptx)]
    yield f"{plugin.file} {plugin.version}, kernel revision {plugin.kernel_revision}"
    yield f"for TensorRT {plugin.tensorrt}, CUDA {plugin.cuda}, {' '.join(code)}"
    yield f"SHA-256 {plugin.sha256}"


def _without_plugin(found: Inspection) -> str:
    """Say what does the decode where no plugin does."""
    if found.onnx is None:
        return "not told"
    if found.onnx.inlined:
        return "none can take the decode, which is inlined: for other runtimes; `nrd-trt build` refuses the file"
    functions = [function.name for function in found.onnx.functions]
    if lone := [node.op for node in found.onnx.plugin_nodes if node.op not in functions]:
        return f"needed: the ONNX file has no function {', '.join(lone)}"
    return f"none needed: {', '.join(functions)} is a function of the ONNX file" if functions else "none"


def _network(metadata: GraphFacts | None, record: BundleRecord | None) -> Lines:
    if metadata is None:
        yield "metadata", "none of nrd_trt's: another tool wrote this file, and `nrd-trt build` will refuse it"
        return
    info, decode = metadata.info, metadata.decode
    yield "model", f"{metadata.encoder} encoder, {metadata.head} head, exported as {metadata.precision}"
    yield (
        "decode",
        f"{decode.num_classes} classes, hidden {decode.hidden}, guidance {decode.guidance_channels}, "
        f"patch {decode.patch}, upsample {decode.upsample}"
        if decode
        else f"{len(info.class_names)} classes, bilinear enlargement by {metadata.upsample}",
    )
    mean, std = (" ".join(f"{value:g}" for value in values) for values in (info.mean, info.std))
    yield (
        "preprocessing",
        f"{info.channel_order.upper()}, mean {mean}, std {std}" + _NORMALISED[metadata.input_form],
    )
    if metadata.mask_encoding != "uint8":
        yield "mask", f"{metadata.mask_encoding}: four pixels in one int32, which the runners of nrd_trt unpack"
    if record:
        yield "image fit", record.fit
        yield "image resample", record.resample
    ignored = f"; label {info.ignore_index} is ignored" if info.ignore_index is not None else ""
    yield "classes", f"{len(info.class_names)}: {', '.join(info.class_names)}{ignored}"


def _onnx(summary: OnnxSummary) -> Lines:
    opset = ", ".join(f"{domain} {version}" for domain, version in summary.opset.items())
    yield "opset", f"{opset}; IR version {summary.ir_version}; written by {summary.producer or 'nobody named'}"
    for title, tensors in (("input", summary.inputs), ("output", summary.outputs)):
        for tensor in tensors:
            yield title, _tensor(tensor)
    yield "nodes", f"{summary.nodes.total}: {_counts(summary.nodes.by_op)}"
    yield "node types", _counts(summary.nodes.by_type)
    weights = (
        f"{_size(entry.bytes)} {kind} ({entry.elements:,} in {entry.tensors} tensors)"
        for kind, entry in summary.weights.items()
    )
    yield "weights", ", ".join(weights) or "none"
    for function in summary.functions:
        yield "function", f"{function.domain}.{function.name}({', '.join(function.inputs)}): {function.nodes} nodes"
    for node in summary.plugin_nodes:
        given = ", ".join(f"{name}={_attribute(value)}" for name, value in node.attributes.items())
        yield "plugin node", f"{node.name or '(unnamed)'}: {node.domain}.{node.op}({given})"


def _layers(found: Inspection, *, every_layer: bool) -> None:
    layers = found.layers
    if not layers or not found.layers_from:
        return
    common.say("", f"Layers: {len(layers)}, {_LAYERS_FROM[found.layers_from]}")
    if every_layer:
        for layer in layers:
            memory_format = getattr(layer, "format", "")  # of the layers of an opened plan
            common.say(f"  {layer.type:<9} {layer.kind:<20} {layer.name}  {memory_format}".rstrip())
        return
    kinds = [kind for kind, _ in Counter(layer.kind for layer in layers).most_common()]
    types = [name for name, _ in Counter(layer.type for layer in layers).most_common(6)]
    table = Counter((layer.kind, layer.type) for layer in layers)
    common.say(f"  {'':<24}" + "".join(f"{name:>10}" for name in types))
    for kind in kinds:
        common.say(f"  {kind:<24}" + "".join(f"{table[kind, name] or '·':>10}" for name in types))
    common.say("  (--layers lists them)")


def _section(title: str, lines: Lines) -> None:
    """Print a title and its labelled lines, broken at blanks so that commands can be copied."""
    common.say("", title)
    before = None
    for label, text in lines:
        shown = "" if label == before else label
        before = label
        common.print_wrapped(f"  {shown:<{_LABEL}} ", text or "–")


def _counts(counts: Mapping[str, int] | None) -> str:
    ordered = sorted((counts or {}).items(), key=lambda item: -item[1])
    return ", ".join(f"{count} {name}" for name, count in ordered)


def _tensor(tensor: TensorSummary) -> str:
    return f"{tensor.name} {tensor.dtype} {_by(tensor.shape)}"


def _by(shape: Sequence[int | str | None]) -> str:
    return "×".join("?" if n is None else str(n) for n in shape) or "scalar"


def _attribute(value: Any) -> str:
    if isinstance(value, list):
        return f"[{len(value)} values]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _size(amount: int) -> str:
    if amount < 2**10:
        return f"{amount} bytes"
    return f"{amount / 2**20:.1f} MiB" if amount >= 2**20 else f"{amount / 2**10:.1f} KiB"


def _short(digest: str) -> str:
    return f"{digest[:16]}…"
