"""A real Triton server on loopback, for the tests of `nrd-trt package` and for `make triton-proof`."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build/triton"
PROGRAM, PYTHON = FOLDER / "bin/tritonserver", FOLDER / "bin/python"
LOAD = ROOT / "scripts/dev/triton_load.py"
MISSING = None if PROGRAM.exists() else "no Triton server in build/triton: make triton-server installs it"
_READY_S = 120.0


class Server:
    """A server that the ``run.sh`` of a package starts.

    Args:
        run: That script.
        log: File that takes what the server prints.
        options: Further options of tritonserver.
    """

    def __init__(self, run: Path, log: Path, *options: str) -> None:
        self.http, self.grpc, self._metrics = _free_ports(3)
        self._shared = f"nrd_{secrets.token_hex(4)}"  # so that what a killed server leaves is known
        addresses = [f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc")]
        ports = {"http": self.http, "grpc": self.grpc, "metrics": self._metrics}
        self._command = [str(run), *addresses, *(f"--{kind}-port={port}" for kind, port in ports.items()), *options]
        self._command += [f"--backend-config=python,shm-region-prefix-name={self._shared}"]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until its models are loaded; raise `RuntimeError` where it ends instead."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TRITONSERVER": str(PROGRAM), "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        end = time.monotonic() + _READY_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server did not start:\n{self._log.read_text()[-4000:]}")
            time.sleep(0.05)

    def kill(self, signal_number: int = signal.SIGKILL) -> None:
        """End it, and what it has started, and remove the memory that they shared."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(signal_number)
        process.wait()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for path in Path("/dev/shm").glob(f"{self._shared}*"):
            path.unlink(missing_ok=True)

    def call(self, path: str, content: Any = None) -> tuple[int, Any]:
        """Send a GET, or a POST where there is something to send; return the status and the JSON that comes back."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=60)
        try:
            body = None if content is None else json.dumps(content)
            connection.request("GET" if body is None else "POST", path, body)
            response = connection.getresponse()
            text = response.read()
            return response.status, json.loads(text) if text else None
        finally:
            connection.close()

    def statistics(self, model: str) -> dict[str, Any]:
        """Return what the server counted of a model."""
        found: dict[str, Any] = self.call(f"/v2/models/{model}/stats")[1]["model_stats"][0]
        return found

    @contextmanager
    def load(self, model: str, pairs: Path, *options: object) -> Iterator[subprocess.Popen[bytes]]:
        """Run `scripts/dev/triton_load.py` meanwhile; its one line of JSON is what the process prints."""
        command = [str(PYTHON), str(LOAD), f"127.0.0.1:{self.grpc}", model, str(pairs), *map(str, options)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            try:
                yield process
            finally:
                process.kill()

    def _is_ready(self) -> bool:
        with suppress(OSError, http.client.HTTPException):
            return self.call("/v2/health/ready")[0] == 200
        return False


def _free_ports(count: int) -> Sequence[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
