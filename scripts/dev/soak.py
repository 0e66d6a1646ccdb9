"""Serve a clip for a time while viewers, streams, uploads, silent sockets and wrong tokens are at it all at once.

    python scripts/dev/soak.py docs/soak.md --seconds 300

Every few seconds a line tells the memory, threads and descriptors of the server and how long `/healthz` took since the
line before; the page has them too, and a plot beside it. It ends with 1 if the 99th percentile of `/healthz` is a
second or more, if an honest upload failed, or if memory, threads or descriptors grew in the second half of the time.
"""

from __future__ import annotations

import argparse
import http.client
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import numpy as np

from nrd_trt import build
from nrd_trt.data.overlay import write_rgb
from nrd_trt.data.synthetic import street_clip, street_scene
from nrd_trt.specs import format_size
from nrd_trt.zoo import checkpoint_path

_HEADER = f"{'s':>5} {'MiB':>7} {'threads':>8} {'files':>6} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8}"
_MOST_MS = 1000.0
_LEAVE_S = 30.0
_FRIEND, _GUESSER, _MUTE = ("127.0.0.1", 0), ("127.0.0.2", 0), ("127.0.0.3", 0)
"""Addresses that the clients come from: strangers have others than those who know the token."""


_NETWORK, _SIZE_HW = "nrd_mobilenetv2_camvid", (128, 192)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The server at one moment, and the latencies of /healthz since the moment before."""

    at_s: float
    mib: float
    threads: int
    files: int
    health_ms: tuple[float, ...]

    def line(self) -> str:
        """Return it as a row of the table."""
        p50, p99, most = np.percentile(self.health_ms or (np.nan,), (50, 99, 100))
        return f"{self.at_s:5.0f} {self.mib:7.1f} {self.threads:8d} {self.files:6d} {p50:8.1f} {p99:8.1f} {most:8.1f}"


@dataclass(kw_only=True)
class Crowd:
    """Everybody who is at the server, and what they were answered."""

    port: int
    token: str
    picture: bytes
    over: threading.Event = field(default_factory=threading.Event)
    answers: Counter[str] = field(default_factory=Counter)
    threads: list[threading.Thread] = field(default_factory=list)
    health_ms: list[float] = field(default_factory=list)

    def start(self, count: int, visit: partial[str]) -> None:
        """Let `count` threads do something again and again until it is over, and count how it came out."""

        def repeat() -> None:
            while not self.over.is_set():
                try:
                    self.answers[visit()] += 1
                except (OSError, http.client.HTTPException) as exc:
                    self.answers[f"{visit.func.__name__} {type(exc).__name__}"] += 1
                    self.over.wait(0.1)

        for _ in range(count):
            self.threads.append(threading.Thread(target=repeat, daemon=True))
            self.threads[-1].start()

    def leave(self) -> None:
        """Let everybody end what they are at; who waits in silence is not waited for."""
        self.over.set()
        end = time.monotonic() + _LEAVE_S
        for thread in self.threads:
            thread.join(max(0.0, end - time.monotonic()))

    def ask(self, path: str, body: bytes | None = None, token: str = "", origin: tuple[str, int] = _FRIEND) -> int:
        """Return the status of one request."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, 60, origin)) as connection:
            headers = {"Authorization": f"Bearer {token or self.token}"}
            connection.request("GET" if body is None else "POST", path, body, headers)
            answer = connection.getresponse()
            answer.read()
            return answer.status

    def healthz(self) -> str:
        """Ask for health, and note how long it took."""
        start = time.perf_counter()
        status = self.ask("/healthz")
        self.health_ms.append((time.perf_counter() - start) * 1000)
        self.over.wait(0.1)
        return f"healthz {status}"

    def viewer(self) -> str:
        """Look at a frame as the page does."""
        return f"viewer {self.ask('/frame')}"

    def stream(self) -> str:
        """Look at some of the endless stream, and leave."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request("GET", f"/stream.mjpg?token={self.token}")
            answer = connection.getresponse()
            answer.read(1 << 18)
            return f"stream {answer.status}"

    def honest(self) -> str:
        """Upload a picture, again where the queue is full, as the answer says."""
        for _ in range(60):
            status = self.ask("/segment", self.picture)
            if status != 429 or self.over.wait(1):
                break
        self.over.wait(1)
        return f"honest {status}"

    def slow(self) -> str:
        """Upload a byte every four seconds until the server ends it."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            head = f"POST /segment HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self.token}\r\n"
            connection.sendall(f"{head}Content-Length: 100000\r\n\r\n".encode())
            connection.settimeout(4)
            while not self.over.is_set():
                with suppress(TimeoutError):
                    return "slow " + (connection.recv(64)[9:12].decode() or "closed")
                connection.sendall(b"x")
        return "slow over"

    def silent(self) -> str:
        """Connect and say half a header until the server ends it."""
        with socket.create_connection(("127.0.0.1", self.port), 60, _MUTE) as connection:
            connection.sendall(b"GET /status HT")
            connection.recv(1)
        return "silent closed"

    def guess(self) -> str:
        """Try a token."""
        return f"guess {self.ask('/status', token=secrets.token_hex(8), origin=_GUESSER)}"


_VISITS: tuple[tuple[str, int, Callable[[Crowd], str]], ...] = (
    ("watch over `/healthz`", 1, Crowd.healthz),
    ("viewers of frames", 16, Crowd.viewer),
    ("viewers of the stream", 4, Crowd.stream),
    ("honest uploads", 2, Crowd.honest),
    ("slow uploads", 4, Crowd.slow),
    ("silent sockets", 150, Crowd.silent),
    ("guesses of the token", 8, Crowd.guess),
)


def main() -> int:
    """Serve, watch and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="the page to write, NAME.md; the plot is NAME.png")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--every", type=float, default=10)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, _served(Path(folder)) as (pid, crowd):
        samples = _watch(pid, crowd, args.seconds, args.every)
    verdicts = _verdicts(samples, crowd.answers)
    _write_page(args.page, samples, crowd.answers, verdicts, args.seconds)
    print(*(f"{'ok ' if good else 'BAD'} {text}" for text, good in verdicts), sep="\n")
    return int(not all(good for _, good in verdicts))


@contextmanager
def _served(folder: Path) -> Iterator[tuple[int, Crowd]]:
    """Serve a drawn clip with a small engine in a process of its own; yield its number and nobody's crowd yet."""
    bundle, clip, picture = folder / "engine.nrd", folder / "clip", folder / "photo.png"
    build(checkpoint_path(_NETWORK), bundle, size=_SIZE_HW, precision="fp32", builder="onnxruntime")
    clip.mkdir()
    for index, scene in enumerate(street_clip(0, _SIZE_HW, frames=30, fps=15)):
        write_rgb(clip / f"{index:06}.png", scene.image)
    write_rgb(picture, street_scene(1, (360, 480)).image)
    token = secrets.token_hex(16)
    command = [sys.executable, "-c", "from nrd_trt.cli.main import main; main()", "serve", str(clip)]
    command += ["--bundle", str(bundle), "--port", "0", "--threads", "1", "-q"]
    environment = {**os.environ, "NRD_TRT_TOKEN": token}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            port = urlsplit(server.stdout.readline().strip()).port if server.stdout else None
            yield server.pid, Crowd(port=cast(int, port), token=token, picture=picture.read_bytes())
        finally:
            server.send_signal(signal.SIGINT)


def _watch(pid: int, crowd: Crowd, seconds: float, every: float) -> list[Sample]:
    for _, count, visit in _VISITS:
        crowd.start(count, partial(visit, crowd))
    samples: list[Sample] = []
    start = time.monotonic()
    print(_HEADER)
    while time.monotonic() - start < seconds:
        time.sleep(every)
        samples.append(_sample(pid, time.monotonic() - start, crowd))
        print(samples[-1].line(), flush=True)
    crowd.leave()
    return samples


def _sample(pid: int, at_s: float, crowd: Crowd) -> Sample:
    process = Path(f"/proc/{pid}")
    facts = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    taken = len(crowd.health_ms)
    health_ms, crowd.health_ms[:taken] = tuple(crowd.health_ms[:taken]), []
    return Sample(
        at_s=at_s,
        mib=int(facts["VmRSS"].split()[0]) / 1024,
        threads=int(facts["Threads"]),
        files=len(list((process / "fd").iterdir())),
        health_ms=health_ms,
    )


def _verdicts(samples: Sequence[Sample], answers: Counter[str]) -> list[tuple[str, bool]]:
    """Return what must hold, in words with the figures, and whether it does."""
    health_p99 = float(np.percentile([ms for sample in samples for ms in sample.health_ms], 99))
    honest = {answer: count for answer, count in answers.items() if answer.startswith("honest ")}
    told = ", ".join(f"{count} times {answer.split()[1]}" for answer, count in sorted(honest.items())) or "none"
    found = [
        (f"`/healthz` p99 is {health_p99:.0f} ms, at most {_MOST_MS:.0f} ms expected", health_p99 < _MOST_MS),
        (f"honest uploads were answered: {told}; only 200 expected", set(honest) == {"honest 200"}),
    ]
    for what, name, most in (
        ("memory in MiB", "mib", 4.0),
        ("threads", "threads", 4.0),
        ("descriptors", "files", 16.0),
    ):
        series = [float(getattr(sample, name)) for sample in samples]
        before, after = (float(np.median(part)) for part in np.array_split(series[len(series) // 3 :], 2))
        text = f"the median of {what} goes from {before:.0f} to {after:.0f} in the last two thirds"
        found.append((f"{text}, at most {most:.0f} more expected", after <= before + most))
    return found


def _write_page(
    page: Path,
    samples: Sequence[Sample],
    answers: Counter[str],
    verdicts: Sequence[tuple[str, bool]],
    seconds: float,
) -> None:
    _plot(samples, page.with_suffix(".png"))
    who = ", ".join(f"{count} {what}" for what, count, _ in _VISITS)
    picture = f"![Memory, threads, descriptors and latency over time]({page.stem}.png)"
    lines = [
        "# Soak",
        "",
        f"`make soak` serves a drawn clip of {format_size(_SIZE_HW)} for {seconds:.0f} s. At once come",
        f"{who}.",
        "Strangers (silent sockets, wrong tokens) come from other addresses than those who know the token.",
        "",
        f"{os.cpu_count()} cores for the server and all of its clients, {date.today().isoformat()}.",
        "",
        *(f"- {'holds' if good else '**does not hold**'}: {text}." for text, good in verdicts),
        "",
        picture,
        "",
        "| answer | times |",
        "|---|---|",
        *(f"| {answer} | {count} |" for answer, count in sorted(answers.items())),
        "",
        "```text",
        _HEADER,
        *(sample.line() for sample in samples),
        "```",
        "",
    ]
    page.write_text("\n".join(lines))


def _plot(samples: Sequence[Sample], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 8), layout="constrained")
    at_s = [sample.at_s for sample in samples]
    rows = (
        ("memory (MiB)", [sample.mib for sample in samples]),
        ("threads", [sample.threads for sample in samples]),
        ("descriptors", [sample.files for sample in samples]),
        ("/healthz p99 (ms)", [np.percentile(sample.health_ms or (np.nan,), 99) for sample in samples]),
    )
    for axes, (label, values) in zip(figure.subplots(len(rows), sharex=True), rows, strict=True):
        axes.plot(at_s, values)
        axes.set(ylabel=label, ylim=(0, None))
    axes.set_xlabel("seconds")
    figure.savefig(path)


if __name__ == "__main__":
    raise SystemExit(main())
