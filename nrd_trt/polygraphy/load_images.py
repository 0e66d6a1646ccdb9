"""For ``--data-loader-script``: images as the deployment prepares them, in the form that the model reads.

``NRD_POLYGRAPHY_MODEL`` names the model, ``NRD_POLYGRAPHY_DATA`` a folder of images; procedural scenes without one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

from nrd_trt.data.samples import SampleSource
from nrd_trt.errors import ConfigError
from nrd_trt.polygraphy.settings import PREFIX, ModelFacts, Settings, read_model, reported
from nrd_trt.runtime.graph_io import image_feed


class Feeds:
    """Feeds of a model, one image each; may be walked over again.

    Args:
        source: The images.
        model: Facts of the model.
        count: At most so many; None takes all.
    """

    def __init__(self, source: SampleSource, model: ModelFacts, count: int | None) -> None:
        self._source, self._graph, self._count = source, model.graph, count

    def __len__(self) -> int:
        return len(self._source) if self._count is None else min(self._count, len(self._source))

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        with reported():
            for sample in islice(self._source, len(self)):
                yield image_feed(sample.image, self._graph)


@reported()
def load_data() -> Feeds:
    """Return the feeds that the environment asks for."""
    settings = Settings.read()
    if settings.model is None:
        raise ConfigError(
            f"{PREFIX}MODEL: expected the ONNX file or bundle whose input the images become, got nothing; "
            f"set it, e.g. {PREFIX}MODEL=model.onnx."
        )
    model = read_model(settings.model)
    source = SampleSource(
        data=settings.data,
        labels=None,
        shape=model.graph.shape,
        info=model.graph.info,
        fit=settings.fit or model.fit,
        resample=settings.resample or model.resample,
    )
    return Feeds(source, model, settings.count)
