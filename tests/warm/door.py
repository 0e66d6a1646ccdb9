"""Stands for a program of the environment: the server beside this file runs it, and both end alike."""

import contextlib
import json
import os
import signal
import socket
import sys

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def arguments(name: str) -> list[str]:
    """What `python` would be given: a program of another name is a script beside it."""
    return sys.argv[1:] if name == "python" else [os.path.join(os.path.dirname(sys.executable), name), *sys.argv[1:]]


def main() -> int:
    """Return the exit code, negative for a signal."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    folder, name = os.path.split(os.path.abspath(sys.argv[0]))
    request = {"arguments": arguments(name), "folder": os.getcwd(), "environment": dict(os.environ)}
    text = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(os.path.join(folder, "socket"))
        socket.send_fds(server, [len(text).to_bytes(8, "big")], [0, 1, 2])
        server.sendall(text)
        answers = server.makefile()
        child = int(answers.readline())

        def forward(number: int, _: object) -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)

        for each in SIGNALS:
            signal.signal(each, forward)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return int(answers.readline())


code = main()
if code < 0:
    if -code in SIGNALS:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
