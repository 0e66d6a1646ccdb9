"""A bundle on a video, shown on a page: source, engine, hub and server put together.

The packages of the extra ``serve`` are imported on use.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from nrd_trt.errors import ConfigError, NrdTrtError
from nrd_trt.optional import require
from nrd_trt.progress import silent
from nrd_trt.runtime.engine import open_engine
from nrd_trt.runtime.engine_thread import EngineThread
from nrd_trt.runtime.select import RunOptions
from nrd_trt.serving.hub import Hub
from nrd_trt.serving.playback import Playback
from nrd_trt.specs import Fit, Provider, Resample, RunnerName, optional_path
from nrd_trt.video.frames import Report
from nrd_trt.video.pause import PauseSwitch
from nrd_trt.video.pipeline import Pipeline
from nrd_trt.video.sources.open_source import open_source
from nrd_trt.video.temporal import parse_smoothing

_PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "av")
_END_WITHIN_S = 0.5


def serve(
    source: str | Path | int,
    bundle: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    allow_host: Sequence[str] = (),
    max_upload_mb: int = 64,
    loop: bool = True,
    smooth: str = "none",
    rate: Fraction | float | None = None,
    live: bool | None = None,
    fit: Fit | None = None,
    resample: Resample | None = None,
    runner: RunnerName = "auto",
    plugin: str | Path | None = None,
    threads: int | None = None,
    cuda: Provider = "driver",
    cuda_graph: bool = True,
    device: int | str | None = None,
    verify_key: str | Path | None = None,
    on_notice: Report = silent,
    on_ready: Callable[[str, str | None], None] = lambda url, token: None,
) -> None:
    """Segment a source and serve its page until Ctrl-C; the page stays when the source ends or fails.

    Args:
        source: See `nrd_trt.segment_video`.
        bundle: A ``NAME.nrd`` folder, or a checkpoint, which runs in PyTorch.
        host: Address to bind to; one that other machines can reach needs a token.
        port: Port to bind to; 0 takes a free one.
        token: Text that whoever asks must know; ``"auto"`` makes one, None asks for none.
        allow_host: Further names under which browsers may reach the server.
        max_upload_mb: Size of the largest upload, in MiB.
        loop: Whether a file begins again at its end.
        smooth: Smoothing of masks over time; see `nrd_trt.segment_video`.
        rate: Frames per second; see `nrd_trt.segment_video`.
        live: Whether late frames are dropped and a lost source is opened again; None goes by the source.
        fit: How frames are brought to the engine's size; None takes the bundle's way.
        resample: See `nrd_trt.open_bundle`.
        runner: Backend; ``"auto"`` takes the plan where this machine can run it, else ONNX Runtime.
        plugin: Library of a plan that decodes by plugin; None looks for it.
        threads: CPU threads; None leaves the choice to the backend.
        cuda: See `nrd_trt.open_bundle`.
        cuda_graph: See `nrd_trt.open_bundle`.
        device: See `nrd_trt.open_bundle`.
        verify_key: For bundles; see `nrd_trt.open_bundle`.
        on_notice: Receives lines that a user should know while the run goes on, e.g. that a stream was lost.
        on_ready: Receives the page's address, and the token where one was made.

    Raises:
        ConfigError: An argument is invalid, others could reach the page without a token, or the port is taken.
        MissingDependencyError: The packages of the extra ``serve`` are not installed.
        VideoError: The source cannot be opened.
        BundleError: The bundle is damaged.
        RunnerError: The engine cannot be started.
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"port={port}: expected 0 to 65535; 8000 is the usual one.")
    if max_upload_mb < 1:
        raise ConfigError(f"max_upload_mb={max_upload_mb}: expected 1 or more; 64 is the usual one.")
    for package in _PACKAGES:
        require(package, extra="serve", purpose="the page")
    from nrd_trt.serving.access import Access
    from nrd_trt.serving.app import create_app
    from nrd_trt.serving.server import bind, make_server
    from nrd_trt.serving.service import DeviceWatch, Service
    from nrd_trt.serving.uploads import Limits, Uploads

    made = secrets.token_urlsafe(18) if token == "auto" else None
    access = Access(host=host, port=port, token=made or token, allow_host=tuple(allow_host))
    plugin = optional_path("plugin", plugin)
    run = RunOptions(runner=runner, plugin=plugin, threads=threads, cuda=cuda, cuda_graph=cuda_graph, device=device)
    verify_key = optional_path("verify_key", verify_key)
    engine = open_engine(bundle, run, fit=fit, resample=resample, verify_key=verify_key)
    hub, thread = Hub(PauseSwitch()), EngineThread(engine)

    def report(line: str) -> None:
        hub.report(line)
        on_notice(line)

    pipeline = Pipeline(
        Playback(lambda: open_source(str(source), rate=rate, live=live, report=report), loop=loop),
        thread,
        [hub],
        smoother=parse_smoothing(smooth, has_logits="logits" in engine.graph.outputs, upsample=engine.graph.upsample),
        pause=hub.pause,
    )
    with bind(host, port) as listener, DeviceWatch() as watch, thread:
        service = Service(
            hub=hub,
            stats=pipeline.stats,
            engine=thread,
            device=watch,
            uploads=Uploads(Limits(mib=max_upload_mb), lambda: hub.closing),
            access=replace(access, port=listener.getsockname()[1]),
            bundle=Path(bundle).name,
        )
        with running(pipeline, hub):
            on_ready(service.access.url, made)
            make_server(create_app(service), hub).run(sockets=[listener])


@contextmanager
def running(pipeline: Pipeline, hub: Hub) -> Iterator[None]:
    """Run a pipeline on a thread of its own while the block lasts, and tell the hub where it fails.

    Args:
        pipeline: Not started; one of its sinks is `hub`.
        hub: Shows the run to viewers.

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
