"""The verb ``serve``: a page that shows the run."""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Annotated

import typer

from nrd_trt.cli import common, groups
from nrd_trt.cli.video import BundleOption, Live, Rate, Smooth, Source, rate_of

_M_ARENA_MAX = -8  # of malloc.h
_HEAPS = 2


def serve_command(
    *,
    source: Source,
    bundle: BundleOption,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="0.0.0.0 for all; needs --token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(envvar="NRD_TRT_TOKEN", metavar="TEXT|auto", help="Whoever looks must know it; auto makes one."),
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Further name of this machine, or of a proxy; repeatable.")
    ] = None,
    loop: Annotated[bool, typer.Option("--loop/--no-loop", help="Begin a file again at its end.")] = True,
    rate: Rate = None,
    live: Live = None,
    smooth: Smooth = "none",
    max_upload_mb: Annotated[int, typer.Option(metavar="MIB", help="Largest upload.")] = 64,
    fit: common.FitOption = None,
    resample: common.ResampleOption = None,
    run: groups.BundleOptions,
    verbose: common.Verbose = False,
    quiet: common.Quiet = False,
) -> None:
    """Show a camera, a stream or a clip with its masks on a web page, until Ctrl-C."""
    from nrd_trt.serving.serve import serve

    share_heaps()

    def ready(url: str, made_token: str | None) -> None:
        # Without the address nobody finds the page, so it is printed with -q too.
        common.say(f"{url}?token={made_token}" if made_token else url)
        if token is not None and made_token is None:
            common.note("the page asks for the token; /?token=… in the address answers it", quiet=quiet)
        common.note("Ctrl-C ends it", quiet=quiet)

    serve(
        source,
        bundle,
        host=host,
        port=port,
        token=token,
        allow_host=allow_host or (),
        max_upload_mb=max_upload_mb,
        loop=loop,
        smooth=smooth,
        rate=rate_of(rate),
        live=live,
        fit=fit,
        resample=resample,
        **run.given(),
        on_notice=functools.partial(common.note, quiet=quiet),
        on_ready=ready,
    )


def share_heaps() -> None:
    """Let all threads of the process allocate from two heaps.

    glibc gives each thread a heap of its own, up to eight for each core, and each grows to the most that a thread ever
    held there: under `make soak` memory rose for minutes, by 40 MiB more. Another C library has its own ways.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None and "MALLOC_ARENA_MAX" not in os.environ:
        set_option(_M_ARENA_MAX, _HEAPS)
