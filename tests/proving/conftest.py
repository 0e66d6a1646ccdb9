"""The command line inside this process, and the bench of runners on the fake driver."""

from __future__ import annotations

from tests.cli.conftest import nrd_trt as command_line  # noqa: F401
from tests.runtime.conftest import bench, make_bench  # noqa: F401
