"""What an engine is compared with: PyTorch, the fp32 ONNX file, or the masks stored in a bundle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from nrd_trt.data.samples import Sample, spread_places
from nrd_trt.engine.bundle import MAX_REFERENCE_PIXELS, MAX_REFERENCES, ReferenceSet
from nrd_trt.errors import ConfigError
from nrd_trt.gates import Gates
from nrd_trt.graph.metadata import GraphFacts, read_facts
from nrd_trt.runtime.engine import Engine
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.validation.compare import TIE_MARGIN, Reference, ReferenceFn
from nrd_trt.validation.triviality import Theta

if TYPE_CHECKING:
    from nrd_trt.model.network import Segmentor


def check_classes(checkpoint: Path, model: Segmentor, graph: GraphFacts) -> None:
    """Raise `ConfigError` unless the checkpoint has as many classes as what is compared with it."""
    expected = len(graph.info.class_names)
    if model.config.num_classes != expected:
        raise ConfigError(
            f"{checkpoint}: expected {expected} classes as in the engine, "
            f"got {model.config.num_classes}; this is the checkpoint of another model."
        )


@contextmanager
def torch_reference(model: Segmentor, *, confidence: bool = False) -> Iterator[ReferenceFn]:
    """Yield the trained model in fp32 as a reference, of masks and perhaps confidences.

    Of the first image it also looks at what the decode is given.
    """
    from nrd_trt.model.stages import predict_stages
    from nrd_trt.runtime.torch_runner import TorchRunner

    looked: list[Theta | None] = []
    with TorchRunner(model, margin=True, confidence=confidence) as runner:

        def predict(sample: Sample) -> Reference:
            if not looked:
                theta = predict_stages(model, sample.image).get("theta")
                looked.append(None if theta is None else Theta.of(theta))
            outputs = runner.infer({"image": sample.image[None]})
            near_tie = outputs["margin"][0] <= TIE_MARGIN * outputs["logits"].std()
            sure = outputs["confidence"][0] if confidence else None
            return Reference(mask=outputs["mask"][0], near_tie=near_tie, theta=looked[0], confidence=sure)

        yield predict


@contextmanager
def onnx_reference(model: onnx.ModelProto, threads: int | None = None) -> Iterator[ReferenceFn]:
    """Yield an fp32 ONNX file as a reference, for builds without a checkpoint."""
    with Engine(OrtRunner(model, threads=threads), read_facts(model)) as engine:
        yield lambda sample: Reference(near_tie=None, **vars(engine.draw(sample.image)))


class StoredSamples:
    """The inputs stored in a bundle, and the reference that knows their masks.

    Attributes:
        name: What the samples are, for records.
        source: What predicted the masks: ``"torch"`` or ``"onnx"``.
    """

    name = "stored inputs"

    def __init__(self, references: ReferenceSet) -> None:
        self.source = references.source
        ties = references.near_ties if self.source == "torch" else [None] * len(references.masks)
        sure = [None] * len(references.masks) if references.confidences is None else references.confidences
        masks = (
            Reference(mask=mask, near_tie=near, confidence=confidence)
            for mask, near, confidence in zip(references.masks, ties, sure, strict=True)
        )
        images = (
            Sample(image=image, restore=np.asarray, name=f"stored input {index}")
            for index, image in enumerate(references.images)
        )
        self._pairs = list(zip(images, masks, strict=True))

    def __len__(self) -> int:
        return len(self._pairs)

    def __iter__(self) -> Iterator[Sample]:
        return (sample for sample, _ in self._pairs)

    def failure(self, predict: ReferenceFn) -> str | None:
        """Say that the stored masks are not those of a checkpoint, whichever drew them, PyTorch or an fp32 file.

        Args:
            predict: The checkpoint's reference.
        """
        wrong = []
        for sample, held in self._pairs:
            due = predict(sample)
            tie = False if due.near_tie is None else due.near_tie
            wrong.append(((held.mask != due.mask) & ~np.asarray(tie)).mean())
        share = float(np.mean(wrong))
        if share <= 1 - Gates.of("fp32").min_agreement:
            return None
        return (
            f"the stored masks are not the checkpoint's: {share:.4%} of the pixels of {len(wrong)} inputs differ away "
            "from ties; rebuild the bundle with checkpoint="
        )

    @contextmanager
    def reference(self) -> Iterator[ReferenceFn]:
        """Yield the stored masks as a reference for these samples."""
        masks = {id(sample): reference for sample, reference in self._pairs}
        yield lambda sample: masks[id(sample)]


class ReferenceCollector:
    """Wraps a reference and keeps some images of one size with their masks for the bundle, evenly spaced."""

    def __init__(self, reference: ReferenceFn, source: str, count: int) -> None:
        self._reference, self._source = reference, source
        self._kept: list[tuple[np.ndarray, Reference]] = []
        self._wanted, self._seen = set(spread_places(count, MAX_REFERENCES)), 0

    def __call__(self, sample: Sample) -> Reference:
        """Return the reference of a sample, and keep it if there is room."""
        reference = self._reference(sample)
        same_size = not self._kept or self._kept[0][0].shape == sample.image.shape
        pixels = reference.mask.size * (len(self._kept) + 1)
        if self._seen in self._wanted and pixels <= MAX_REFERENCE_PIXELS and same_size:
            self._kept.append((sample.image, reference))
        self._seen += 1
        return reference

    def collected(self) -> ReferenceSet:
        """Return what was kept."""
        ties = [np.zeros(r.mask.shape, bool) if r.near_tie is None else r.near_tie for _, r in self._kept]
        sure = [reference.confidence for _, reference in self._kept if reference.confidence is not None]
        return ReferenceSet(
            images=np.stack([image for image, _ in self._kept]),
            masks=np.stack([reference.mask for _, reference in self._kept]),
            near_ties=np.stack(ties),
            source=self._source,
            confidences=np.stack(sure) if sure else None,
        )
