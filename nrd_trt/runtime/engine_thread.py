"""A runner on a thread of its own, for callers on any thread. NumPy only.

CUDA contexts belong to threads and an execution context serves one run at a time, so a video and the uploads of a web
page share an engine through one thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np

from nrd_trt.errors import RunnerError
from nrd_trt.runtime.base import Runner

Outputs = dict[str, np.ndarray]


class EngineThread:
    """Opens, runs and closes a runner on one thread.

    Args:
        runner: Not entered.

    Attributes:
        runner: The same; its name and arithmetic are of interest.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self._pool: ThreadPoolExecutor | None = None

    def begin(self, feed: Mapping[str, np.ndarray]) -> Future[Outputs]:
        """Queue one run; its result, or its error, is the future's.

        Raises:
            RunnerError: Not entered.
        """
        if self._pool is None:
            raise RunnerError(f"{self.runner.name}: not entered; use it inside a `with` block.")
        return self._pool.submit(self.runner.infer, feed)

    def __enter__(self) -> EngineThread:
        if self._pool is not None:
            raise RunnerError(f"{self.runner.name}: already entered; leave it first or make a second one.")
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nrd-engine")
        try:
            pool.submit(self.runner.__enter__).result()
        except BaseException:
            pool.shutdown()
            raise
        self._pool = pool
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            try:
                pool.submit(self.runner.__exit__, None, None, None).result()
            finally:
                pool.shutdown(cancel_futures=True)
