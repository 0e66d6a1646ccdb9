"""A run beside the server, on a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from nrd_trt.errors import NrdTrtError
from nrd_trt.serving.hub import Hub
from nrd_trt.video.pipeline import Pipeline

_END_WITHIN_S = 0.5


@contextmanager
def running(pipeline: Pipeline, hub: Hub) -> Iterator[None]:
    """Run a pipeline while the block lasts, and tell the hub where it fails.

    Args:
        pipeline: Not started; one of its sinks is `hub`.
        hub: Shows it.

    Raises:
        NrdTrtError: The source could not be opened.
    """
    failed: list[NrdTrtError] = []

    def work() -> None:
        try:
            pipeline.run()
        except NrdTrtError as exc:
            failed.append(exc)
            hub.fail(str(exc))
        except Exception as exc:
            hub.fail(f"internal error: {type(exc).__name__}: {exc} (please report it)")

    thread = threading.Thread(target=work, name="run", daemon=True)
    thread.start()
    hub.started.wait()
    if failed and hub.info is None:
        raise failed[0]
    try:
        yield
    finally:
        pipeline.stop()
        thread.join(_END_WITHIN_S)
