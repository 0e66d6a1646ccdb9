"""Real services on this machine for the tests of sources: ready when a context begins, killed when it ends."""

from __future__ import annotations

import contextlib
import functools
import http.server
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SYSTEM_PYTHON = "/usr/bin/python3"
_RTSP_SCRIPT = Path(__file__).with_name("rtsp_server.py")
_READY_S = 20.0


def need_gstreamer(*elements: str) -> None:
    if shutil.which("gst-launch-1.0") is None or shutil.which("gst-inspect-1.0") is None:
        pytest.skip("needs gst-launch-1.0: apt-get install gstreamer1.0-tools")
    missing = [name for name in ("videoconvert", "matroskamux", *elements) if not _has_element(name)]
    if missing:
        pytest.skip(f"needs the GStreamer elements {', '.join(missing)}: scripts/install_test_services.sh")


@functools.cache
def _has_element(name: str) -> bool:
    return subprocess.run(["gst-inspect-1.0", "--exists", name], capture_output=True).returncode == 0


@functools.cache
def _has_rtsp_server() -> bool:
    code = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    return (
        Path(SYSTEM_PYTHON).exists()
        and subprocess.run([SYSTEM_PYTHON, "-c", code], capture_output=True).returncode == 0
    )


def need_rtsp_server() -> None:
    need_gstreamer("x264enc", "rtph264pay")
    if not _has_rtsp_server():
        pytest.skip("needs an RTSP server: apt-get install gir1.2-gst-rtsp-server-1.0 python3-gi")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process that listens at `port`; connecting to see would use up the one connection of some."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        began = time.monotonic()
        while not _listening(port):
            if process.poll() is not None or time.monotonic() - began > _READY_S:
                process.kill()
                raise RuntimeError(f"{command[0]} does not listen: {process.communicate()[1].decode()[-2000:]}")
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.communicate()


def _listening(port: int) -> bool:
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in rows)


def rtsp_server(port: int, *login: str) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    return running([SYSTEM_PYTHON, str(_RTSP_SCRIPT), str(port), *login], port)


@contextlib.contextmanager
def http_server(handler: type[http.server.BaseHTTPRequestHandler], **settings: object) -> Iterator[str]:
    """A server in this process; gives ``http://127.0.0.1:PORT``."""
    quiet = type("Quiet", (handler,), {"log_message": lambda *args: None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(quiet, **settings))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def http_files(folder: Path) -> contextlib.AbstractContextManager[str]:
    return http_server(http.server.SimpleHTTPRequestHandler, directory=str(folder))
