"""The report of a validation: one HTML page that holds every figure and picture and needs no network."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nrd_trt.engine.bundle import Bundle
from nrd_trt.files import atomic_file
from nrd_trt.machine.host import installed_version
from nrd_trt.specs import format_size
from nrd_trt.validation.charts import agreement_plot, bars, error_bar
from nrd_trt.validation.html import Child, Html, page, section, table, tag
from nrd_trt.validation.report_pictures import show_pictures
from nrd_trt.validation.stages import TITLES, StageFigures

if TYPE_CHECKING:
    from nrd_trt.validation.validate import Validation

_PACKAGES = ("nrd-trt", "numpy", "onnx", "onnxruntime", "torch", "tensorrt", "tensorrt-rtx-cu13")
_REFERENCES = {"torch": "the PyTorch model in fp32", "onnx": "the fp32 ONNX file", "stored": "the bundle's own masks"}


def write_report(path: Path, bundle: Bundle, validation: Validation) -> None:
    """Write the page atomically; an existing file is replaced."""
    text = render_report(bundle, validation)
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def render_report(bundle: Bundle, validation: Validation) -> str:
    """Return the page."""
    title = f"Validation of {bundle.path.name}"
    return page(
        title,
        _header(title, bundle, validation),
        _cards(validation),
        _gates(validation),
        _stages(validation),
        _classes(bundle, validation),
        _images(validation),
        _flips(validation),
        show_pictures(validation.comparison.pictures, bundle.graph.info.palette),
        _rebuilds(validation),
        _precision(bundle, validation),
        _environment(bundle),
        _glossary(validation),
    )


def _header(title: str, bundle: Bundle, validation: Validation) -> Html:
    graph = bundle.graph
    verdict = tag(
        "span",
        "PASSED" if validation.passed else "NOT PASSED",
        class_=f"verdict {'good' if validation.passed else 'bad'}",
    )
    kind = f"{graph.encoder}, {graph.head} head, {len(graph.info.class_names)} classes, {graph.precision}"
    size = format_size(graph.shape.opt_hw)
    run = f"Masks drawn by {validation.runner} ({validation.arithmetic} arithmetic), compared with "
    left = tag(
        "div",
        tag("h1", title),
        tag("p", f"{kind}, {size}", class_="soft"),
        tag(
            "p",
            f"{run}{_REFERENCES[validation.reference]} on {validation.comparison.images} {validation.samples}.",
            _plan_note(bundle, validation),
            class_="soft",
        ),
    )
    failures = validation.failures
    listed = tag("section", tag("h2", "What failed"), tag("ul", [tag("li", line) for line in failures]))
    return Html(tag("div", left, verdict, class_="head") + (listed if failures else ""))


def _plan_note(bundle: Bundle, validation: Validation) -> str | None:
    if bundle.plan_path is None:
        return " The bundle has no plan."
    return None if validation.plan_run else " The plan itself did not run."


def _cards(validation: Validation) -> Html:
    found = validation.comparison
    cards = [
        ("pixel agreement", _share(found.pixel_agreement), f"gate {validation.gates.min_agreement:g}"),
        ("mIoU between", _share(found.miou_between), "engine against reference"),
        ("flips not near a tie", _percent(found.flips.far_share), "of all pixels"),
        ("boundary F", _share(found.boundary_between), f"within {found.boundary_tolerance_px} px"),
    ]
    if found.miou_drop is not None:
        cards.insert(2, ("mIoU drop", f"{found.miou_drop:+.4f}", f"gate {validation.gates.max_miou_drop:g}"))
    return tag(
        "div",
        [
            tag("div", name, tag("b", value), tag("span", what, class_="soft small"), class_="card")
            for name, value, what in cards
        ],
        class_="cards",
    )


def _gates(validation: Validation) -> Html:
    found, gates = validation.comparison, validation.gates
    agreement, drop = found.pixel_agreement, found.miou_drop
    rows: list[list[Child]] = [
        [
            "pixel agreement",
            _share(agreement, 6),
            f"at least {gates.min_agreement:g}",
            _verdict(agreement is not None and agreement >= gates.min_agreement),
        ],
        [
            "mIoU drop against labels",
            "no labels" if drop is None else f"{drop:+.6f}",
            f"at most {gates.max_miou_drop:g}",
            _verdict(None if drop is None else drop <= gates.max_miou_drop),
        ],
        [
            "checkpoint is the bundle's",
            _yes(validation.checkpoint_matches),
            "same SHA-256",
            _verdict(validation.checkpoint_matches),
        ],
    ]
    if validation.precision_found is not None:
        kinds = ", ".join(f"{count} {kind}" for kind, count in validation.precision_found.items())
        held = validation.precision_asked in validation.precision_found
        rows.append(["types of the convolutions", kinds, f"{validation.precision_asked} asked", _verdict(held)])
    if validation.localisation is not None:
        first = validation.localisation.first_beyond
        rows.append(
            ["stages", TITLES.get(first, first) if first else "all within", "tolerances below", _verdict(not first)]
        )
    if validation.rebuilds is not None:
        shown = "not run" if validation.rebuilds.agreement is None else _share(validation.rebuilds.agreement, 6)
        failed = validation.rebuilds.failure(gates.min_agreement) is not None
        stable = False if failed else None if validation.rebuilds.agreement is None else True
        rows.append(["agreement between builds", shown, f"at least {gates.min_agreement:g}", _verdict(stable)])
    return section("Gates", table(["gate", "measured", "asked", ""], rows, numbers=(1,)))


def _stages(validation: Validation) -> Html | None:
    found = validation.localisation
    if found is None:
        return None
    chips: list[Child] = []
    for figures in found.stages:
        if chips:
            chips.append(tag("span", "→", class_="arrow"))
        kind = "first" if figures.stage == found.first_beyond else "good" if figures.within else "bad"
        chips.append(tag("span", TITLES[figures.stage], class_=f"chip {kind}"))
    said = [tag("p", hint, class_="hint") for hint in found.hints]
    rows = [_stage_row(figures) for figures in found.stages]
    head = [
        "stage",
        "error",
        "tolerance",
        "error around its tolerance",
        "worst channel",
        "its error",
        "",
        "",
    ]
    return section(
        "Stages: PyTorch against the file",
        tag("div", chips, class_="flow"),
        said,
        table(head, rows, numbers=(1, 2, 4, 5, 6)),
        tag(
            "p",
            f"On {', '.join(found.images)}; {found.note}. The bars are logarithmic around the tolerance.",
            class_="soft small",
        ),
    )


def _stage_row(figures: StageFigures) -> list[Child]:
    finite = np.isfinite(figures.error)
    channel: list[Child] = ["", "", ""]
    if figures.worst_channel_error is not None:
        allowed = f"of {figures.channel_tolerance:g}"
        channel = [str(figures.worst_channel), _error(figures.worst_channel_error), allowed]
    return [
        TITLES[figures.stage],
        _error(figures.error) if finite else f"{figures.not_finite} values not finite",
        f"{figures.tolerance:g}",
        error_bar(figures.error if finite else None, figures.tolerance),
        *channel,
        _verdict(figures.within, "within", "beyond"),
    ]


def _classes(bundle: Bundle, validation: Validation) -> Html:
    found, palette = validation.comparison, bundle.graph.info.palette
    labelled = found.per_class_iou is not None and found.per_class_reference is not None
    rows: list[list[Child]] = []
    for index, (name, between) in enumerate(found.per_class_between.items()):
        swatch = tag("span", class_="swatch", style=f"background:rgb{tuple(palette[index])}")
        reference = (found.per_class_reference or {}).get(name)
        engine = (found.per_class_iou or {}).get(name)
        pair = [(reference, "ref"), (engine, "eng")] if labelled else [(between, "eng")]
        against = [_share(reference), _share(engine)] if labelled else []
        rows.append([[swatch, name], bars(pair), *against, _share(between), _share(found.per_class_boundary[name])])
    against = ["mIoU reference", "mIoU engine"] if labelled else []
    head = ["class", "IoU", *(title.replace("mIoU", "IoU") for title in against), "IoU between", "boundary F"]
    means = [_share(found.miou_reference), _share(found.miou_engine)] if labelled else []
    rows.append([tag("b", "mean"), "", *means, _share(found.miou_between), _share(found.boundary_between)])
    legend = (
        "Bars: grey the reference, blue the engine, both against the labels."
        if labelled
        else "Bars: the engine's masks against the reference's; no labels were given."
    )
    return section(
        "Classes",
        table(head, rows, numbers=range(2, len(head))),
        tag("p", legend, " A dash: the class is on neither side.", class_="soft small"),
    )


def _images(validation: Validation) -> Html:
    found = validation.comparison
    values = [(one.name, one.pixel_agreement) for one in found.per_image if one.pixel_agreement is not None]
    rows = [
        [one.name, _share(one.pixel_agreement, 6), _number(one.flips), _number(one.far)] for one in found.worst_images
    ]
    return section(
        "Agreement per image",
        tag("div", tag("div", agreement_plot(values, validation.gates.min_agreement), class_="plot"), class_="scroll")
        if values
        else None,
        tag("p", "Dashed: the gate, which holds for all images together.", class_="soft small"),
        table(["worst images", "agreement", "flipped pixels", "not near a tie"], rows, numbers=(1, 2, 3))
        if rows
        else None,
    )


def _flips(validation: Validation) -> Html:
    found = validation.comparison
    flips = found.flips
    if not flips.pixels:
        return section("Flips", tag("p", "No pixel differs."))
    text = f"{_number(flips.pixels)} pixels differ ({_percent(flips.share)})"
    if flips.far is None:
        text += "; the reference's logits are not known, so near ties are not told apart."
    else:
        text += f"; {_number(flips.near_tie)} are near a tie of the two best classes, {_number(flips.far)} are not"
        text += f" ({_percent(flips.far_share)})."
    rows = [[pair.reference, pair.engine, _number(pair.pixels), _number(pair.far)] for pair in found.flip_pairs]
    return section(
        "Flips", tag("p", text), table(["reference", "engine", "pixels", "not near a tie"], rows, numbers=(2, 3))
    )


def _rebuilds(validation: Validation) -> Html | None:
    found = validation.rebuilds
    if found is None:
        return None
    rows: list[list[Child]] = [
        [str(index + 1), tag("code", plan[:16] + "…"), ", ".join(f"{n} {kind}" for kind, n in types.items())]
        for index, (plan, types) in enumerate(zip(found.plans, found.types_found, strict=True))
    ]
    text = f"{found.builds} builds with {found.builder}: {found.note}."
    if found.plans:
        alike = "All plans are equal" if found.distinct == 1 else f"There are {found.distinct} different plans"
        text += f" {alike}, {found.same_as_bundle} of {found.builds} are the bundle's, byte for byte."
    if found.agreement is not None:
        text += f" Smallest agreement between builds {found.agreement:.6f} on {found.images} images."
    return section(
        "Build stability", tag("p", text), table(["build", "plan's SHA-256", "layers by type"], rows) if rows else None
    )


def _precision(bundle: Bundle, validation: Validation) -> Html:
    recorded = bundle.record.precision
    rows: list[list[Child]] = [["asked", recorded.asked]]
    if validation.precision_found is not None:
        rows.append(["convolutions of the file, by type of their weights", _counted(validation.precision_found)])
    layers = _counted(recorded.found) if recorded.found else "no plan was built"
    rows.append(["layers of the plan's network, by type", layers])
    kept = recorded.kept_fp32
    rows.append(["kept in fp32 for their range", f"{len(kept)} nodes" if kept else "none"])
    listed = tag("p", tag("code", ", ".join(kept)), class_="small") if kept else None
    return section("Precision: asked and found", table([], rows), listed)


def _environment(bundle: Bundle) -> Html:
    built = bundle.record.builder
    rows: list[list[Child]] = [
        ["bundle", bundle.path.name],
        ["checkpoint", tag("code", str(bundle.graph.checkpoint_sha256 or "not recorded"))],
        *(list[Child]([name, tag("code", digest)]) for name, digest in sorted(bundle.record.files.items())),
        ["built with", " ".join(filter(None, (built.name, built.version, built.gpu)))],
        ["rebuild with", tag("code", bundle.record.command)],
        ["this machine", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"],
        ["packages", ", ".join(f"{name} {version}" for name in _PACKAGES if (version := installed_version(name)))],
    ]
    return section("Environment", table([], rows))


def _glossary(validation: Validation) -> Html:
    tolerance = validation.comparison.boundary_tolerance_px
    terms = [
        ("agreement", "share of pixels with the same class in both masks."),
        ("near a tie", "the reference's two best classes are nearly equal there, so rounding may turn them."),
        ("mIoU between", "mean IoU of the engine's masks, with the reference's masks as labels."),
        ("boundary F", f"share of class outlines found within {tolerance} pixels, both ways (harmonic mean)."),
        ("error of a stage", "root mean square of the difference over the standard deviation of PyTorch's tensor."),
    ]
    return section("What the figures mean", tag("ul", [tag("li", tag("b", name), ": ", text) for name, text in terms]))


def _verdict(held: bool | None, good: str = "holds", bad: str = "fails") -> Html:
    if held is None:
        return tag("span", "not checked", class_="soft")
    return tag("b", good if held else bad, class_="good" if held else "bad")


def _error(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def _yes(held: bool | None) -> str:
    return "no checkpoint" if held is None else "yes" if held else "no"


def _number(count: int | None) -> str:
    return "–" if count is None else f"{count:,}".replace(",", "\u202f")


def _share(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.3f} %"


def _counted(found: dict[str, Any]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in found.items())
