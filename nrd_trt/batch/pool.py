"""Ray: a session on this machine or in a cluster, and the pool of workers that fits it. Ray is imported here only."""

from __future__ import annotations

import logging
import os
import pickle
import secrets
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from nrd_trt.batch.sources import Chunk
from nrd_trt.batch.worker import Report, Task, Worker
from nrd_trt.errors import BatchError, ConfigError, NrdTrtError
from nrd_trt.optional import require
from nrd_trt.specs import check_number

_PURPOSE = "segmenting a data set"
_ANSWER_S = 10
_OBJECT_STORE_BYTES = 128 << 20  # names of images go through it, no pixels; Ray would take a third of the memory
_MOST_BLOCKS = 4096  # each is an object that this process puts before the first worker begins
_RETRIES = 3  # of a chunk whose worker died; Ray would begin an image that kills it again for ever


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a caller wants of the pool; None leaves the choice to `pool_of`.

    Attributes:
        concurrency: The fewest and the most workers.
        threads: CPU threads of each worker.
        gpus_per_worker: GPUs of each worker; a fraction shares one.
    """

    concurrency: tuple[int, int] | None = None
    threads: int | None = None
    gpus_per_worker: float | None = None

    def __post_init__(self) -> None:
        check_number("threads", self.threads, low=1)
        check_number("gpus_per_worker", self.gpus_per_worker, low=0, whole=False)
        given = self.concurrency
        if given is not None and not (
            isinstance(given, tuple | list)
            and len(given) == 2
            and all(isinstance(n, int) for n in given)
            and 1 <= given[0] <= given[1]
        ):
            raise ConfigError(f"concurrency={given!r}: expected (MIN, MAX), whole numbers with 1 <= MIN <= MAX.")


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Workers that fit the machine: `most` times `threads` are no more than its cores."""

    least: int
    most: int
    threads: int
    gpus: float


def pool_of(wish: Wish, *, cores: int, gpus: float, has_plan: bool) -> Pool:
    """Return the pool for a wish.

    By default every worker has one thread and there is one for each core, or as many as the GPUs take. A pool that
    wants more cores than there are would wait for ever for its last worker, or share cores and be slower.

    Raises:
        ConfigError: The wish needs more cores or GPUs than there are.
    """
    share = wish.gpus_per_worker
    if share is None:
        share = 1.0 if has_plan and gpus >= 1 else 0.0
    if share > gpus:
        raise ConfigError(f"gpus_per_worker={share:g}: expected no more than the {gpus:g} GPUs that Ray finds.")
    by_gpus = int(gpus / share + 1e-9) if share else cores
    if wish.concurrency is None:
        most = max(1, min(cores // (wish.threads or 1), by_gpus))
        least = most
    else:
        least, most = wish.concurrency
    threads = wish.threads or max(1, cores // most)
    if most * threads > cores:
        raise ConfigError(
            f"concurrency={(least, most)} with threads={threads}: expected no more than {cores} cores in all, got "
            f"{most * threads}; ask for fewer workers or threads."
        )
    if most > by_gpus:
        raise ConfigError(f"concurrency={(least, most)}: expected at most {by_gpus} workers on {gpus:g} GPUs.")
    return Pool(least=least, most=most, threads=threads, gpus=share)


@contextmanager
def session(address: str | None) -> Iterator[tuple[int, float]]:
    """Yield the cores and GPUs of Ray: of the session that this process has, of a cluster, or of this machine.

    Raises:
        MissingDependencyError: Ray is not installed.
        BatchError: The cluster does not answer.
    """
    if address is not None:
        _check_answers(address)
    if "ray" not in sys.modules:  # it reads these when it is imported
        _set_environment(own=address is None)
    ray = require("ray", extra="batch", purpose=_PURPOSE)
    own = not ray.is_initialized()
    try:
        if own:
            _start(ray, address)
        found = ray.cluster_resources()
        yield int(found.get("CPU", 0)), float(found.get("GPU", 0))
    finally:
        if own:
            ray.shutdown()


def run(task: Task, chunks: Sequence[Chunk], pool: Pool) -> Iterator[Report]:
    """Let the pool segment chunks; yield what is reported of each batch when it is done.

    Raises:
        NrdTrtError: What ended the job, as the worker raised it.
        BatchError: Workers died again and again, or the cluster was lost.
    """
    ray = require("ray", extra="batch", purpose=_PURPOSE)
    try:
        for row in _dataset(task, chunks, pool).iter_rows():
            report: Report | NrdTrtError = pickle.loads(row["report"])
            if isinstance(report, NrdTrtError):
                raise report
            yield report
    except ray.exceptions.RayTaskError:
        raise  # a defect
    except ray.exceptions.RayError as exc:
        reason = (str(exc) or type(exc).__name__).splitlines()[0]
        raise BatchError(
            f"workers were lost ({reason}); they may lack memory. Go on with resume=True, and fewer workers."
        ) from exc


def _dataset(task: Task, chunks: Sequence[Chunk], pool: Pool) -> Any:
    data = require("ray.data", extra="batch", purpose=_PURPOSE)
    most = min(pool.most, len(chunks))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's, of its own settings
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        data.DataContext.get_current().enable_progress_bars = False
        rows = [{"chunk": pickle.dumps(chunk)} for chunk in chunks]
        return data.from_items(rows, override_num_blocks=min(len(rows), _MOST_BLOCKS)).map_batches(
            Worker,
            fn_constructor_args=(task,),
            batch_size=1,
            batch_format="numpy",
            compute=data.ActorPoolStrategy(min_size=min(pool.least, most), max_size=most),
            num_cpus=pool.threads,
            num_gpus=pool.gpus,
            max_task_retries=_RETRIES,
        )


def _set_environment(*, own: bool) -> None:
    """Let Ray's processes keep to themselves; what a user has set stays."""
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    # They listen on every interface, and whoever may talk to them runs code.
    closed = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)} if own else {}
    for name, value in {**quiet, **closed}.items():
        os.environ.setdefault(name, value)


def _start(ray: Any, address: str | None) -> None:
    """Begin a session, quiet and with nothing that listens beyond this machine; SIGTERM stays ours."""
    here = {"num_cpus": len(os.sched_getaffinity(0)), "include_dashboard": False}
    here |= {"object_store_memory": _OBJECT_STORE_BYTES}
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **({} if address else here))
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as exc:
        where = "on this machine" if address is None else f"address={address}"
        raise BatchError(f"Ray does not start {where} ({exc}); check it with `ray status`.") from exc
    finally:
        if main and handler is not None:
            signal.signal(signal.SIGTERM, handler)


def _check_answers(address: str) -> None:
    """Raise `BatchError` where nobody listens at ``HOST:PORT``: Ray would ask for minutes."""
    host, colon, port = address.rpartition(":")
    if address == "auto":
        return
    if not (colon and host and port.isascii() and port.isdigit()):
        raise ConfigError(f"address={address!r}: expected HOST:PORT of a cluster's head node, or 'auto'.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except (OSError, OverflowError) as exc:
        raise BatchError(
            f"address={address}: the cluster does not answer ({exc}); check the address and that its head node runs."
        ) from exc
