"""`nrd-trt serve` as a process: what it prints, how it ends, what it refuses."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import nrd_trt as package
from tests.artefacts import bundle, environment
from tests.cli.conftest import Invoke
from tests.serving.waiting import until
from tests.video.clips import street_frames, write_clip
from tests.warm.programs import command_line

httpx = pytest.importorskip("httpx", reason="needs httpx: pip install nrd-trt[dev]")
pytest.importorskip("fastapi", reason="needs fastapi: pip install nrd-trt[serve]")


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle()  # not within the time of a test
    return write_clip(tmp_path_factory.mktemp("drive") / "drive.mp4", street_frames(4), rate=10)


@contextmanager
def started(*arguments: object, **changes: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start it and wait for the line with the address."""
    command = command_line("serve", *arguments, "--bundle", bundle(), "--port", 0, "--threads", 1)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment(**changes), **pipes) as process:  # type: ignore[call-overload]
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        try:
            yield process, process.stdout.readline().strip()
        finally:
            watchdog.cancel()
            process.kill()


def stopped(process: subprocess.Popen[str], *signals: signal.Signals) -> str:
    """End it and return what it still said."""
    for each in signals:
        process.send_signal(each)
    told = "".join(process.communicate(timeout=5))  # 0.4 s on an idle machine
    assert process.returncode == 130, told
    assert "Traceback" not in told
    return told


def test_it_serves_until_it_is_stopped_twice(drive: Path) -> None:
    with started(drive) as (process, url):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url), url
        with httpx.stream("GET", f"{url}stream.mjpg", trust_env=False, timeout=10) as stream:
            next(stream.iter_raw())
            # The clip has four frames: it has begun again.
            until(lambda: httpx.get(f"{url}status", trust_env=False).json()["number"] >= 8)
            assert "Ctrl-C" in stopped(process, signal.SIGINT, signal.SIGINT)


def test_it_ends_while_clients_are_slow(drive: Path) -> None:
    """Bodies that come slowly or stop, a viewer who reads nothing, and a guess that waits for its answer."""
    secret = "given-by-the-environment"
    beginnings = [
        b"POST /segment HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\nContent-Length: 100000\r\n\r\nx",
        b"POST /control HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\nContent-Length: 100\r\n\r\n{",
        b"GET /stream.mjpg HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer not-%b\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: local",
    ]
    with started(drive, NRD_TRT_TOKEN=secret) as (process, url), ExitStack() as stack:
        port = int(url.rstrip("/").rpartition(":")[2])
        for beginning in beginnings[:1] * 5 + beginnings:
            one = socket.socket()
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.connect(("127.0.0.1", port))
            stack.enter_context(one)
            one.sendall(beginning.replace(b"%b", secret.encode()))
        left = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        left.sendall(beginnings[0].replace(b"%b", secret.encode()))
        left.close()  # in the middle of its upload
        headers = {"Authorization": f"Bearer {secret}"}
        until(lambda: httpx.get(f"{url}status", headers=headers, trust_env=False).json()["number"] >= 20)
        told = stopped(process, signal.SIGINT)
        assert "ASGI" not in told and "Cancel" not in told and "Error" not in told


def test_from_python_it_serves_until_ctrl_c_and_makes_a_token(drive: Path) -> None:
    statuses: list[int] = []

    def look(url: str, token: str | None) -> None:
        def visit() -> None:
            try:
                statuses.append(httpx.get(f"{url}status", trust_env=False).status_code)
                with httpx.Client(trust_env=False, follow_redirects=True) as http:
                    statuses.append(http.get(f"{url}?token={token}").status_code)
                    until(lambda: http.get(f"{url}status").json()["state"] == "ended")  # and the page is still there
            finally:
                os.kill(os.getpid(), signal.SIGINT)

        assert token is not None and len(token) >= 16
        threading.Thread(target=visit).start()

    with pytest.raises(KeyboardInterrupt):
        package.serve(drive, bundle(), port=0, token="auto", loop=False, threads=1, on_ready=look)
    assert statuses == [401, 200]


def test_a_token_that_it_makes_is_printed(nrd_trt: Invoke, drive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(*arguments: object, on_ready: Callable[[str, str | None], None], **options: object) -> None:
        on_ready("http://here/", "made")

    monkeypatch.setattr("nrd_trt.serving.serve.serve", serve)
    assert nrd_trt("serve", drive, "--bundle", "x", "--token", "auto", "-q").stdout == "http://here/?token=made\n"


def test_a_token_that_it_is_given_is_not_printed(drive: Path) -> None:
    secret = "given-by-the-environment"
    with started(drive, "--no-loop", NRD_TRT_TOKEN=secret) as (process, url):
        assert httpx.get(f"{url}status", trust_env=False).status_code == 401
        headers = {"Authorization": f"Bearer {secret}"}
        # The page is still there when the run has ended.
        until(lambda: httpx.get(f"{url}status", headers=headers, trust_env=False).json()["state"] == "ended")
        assert secret not in url + stopped(process, signal.SIGTERM)


def test_a_taken_port_is_bad_input(nrd_trt: Invoke, drive: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = nrd_trt("serve", drive, "--bundle", bundle(), "--port", port)
    assert result.exit_code == 2
    assert f"--port {port}: expected a port that is free on 127.0.0.1, got: Address already in use" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--host", "0.0.0.0"],
            "--host 0.0.0.0: expected a token where other machines can reach the server, got none; give --token auto",
        ),
        (["--port", "70000"], "--port 70000: expected 0 to 65535"),
        (["--max-upload-mb", "0"], "--max-upload-mb 0: expected 1 or more"),
    ],
)
def test_options_that_cannot_be_are_bad_input(nrd_trt: Invoke, drive: Path, options: list[str], message: str) -> None:
    result = nrd_trt("serve", drive, "--bundle", bundle(), "--port", 0, *options)
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_a_source_that_cannot_be_read_is_told_at_once(nrd_trt: Invoke, tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("these are notes")
    for name, told in (("no.mp4", "no.mp4: expected"), ("notes.mp4", "notes.mp4: expected a video")):
        result = nrd_trt("serve", tmp_path / name, "--bundle", bundle(), "--port", 0)
        assert (result.exit_code, result.stdout) == (2, "")
        assert told in result.stderr


_HEAPS = """
import re, sys, threading
from nrd_trt.cli.serve import share_heaps
if sys.argv[1] == "shared":
    share_heaps()
held, go = [], threading.Barrier(13)
def allocate():
    go.wait()
    held.extend(bytes(50_000) for _ in range(20))
    go.wait()
threads = [threading.Thread(target=allocate) for _ in range(12)]
[thread.start() for thread in threads]
go.wait()
go.wait()
starts = [int(line.split("-")[0], 16) for line in open("/proc/self/maps") if re.search(r" 0 *$", line)]
print(sum(start % (64 << 20) == 0 for start in starts))  # where glibc's heaps of threads begin
"""


def test_threads_of_the_server_share_two_heaps() -> None:
    """One heap for each thread keeps the most that the thread ever held, so memory would rise for long."""
    found = {}
    for how in ("shared", "own"):
        command = [sys.executable, "-c", _HEAPS, how]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
        found[how] = int(done.stdout)
    if found["own"] < 3:
        pytest.skip("this C library gives threads no heaps of their own")
    assert found["shared"] <= 1, "beside that of the process"
