"""Streams and files behind a URL."""

from __future__ import annotations

import re
import socket
from urllib.parse import urlsplit

from nrd_trt.data.videos import VideoReader
from nrd_trt.errors import VideoError

SCHEMES = ("rtsp", "rtsps", "http", "https", "udp", "rtmp")
# A read that gets nothing is given up after the second number: nothing else ends it, not even stop().
_TIMEOUT_S = (5.0, 2.0)


def open_url(url: str, *, live: bool | None) -> VideoReader:
    """Open a stream; see `VideoReader`.

    Args:
        url: A URL of one of the `SCHEMES`.
        live: When None, what http and https deliver is live unless its duration is known.

    Raises:
        VideoError: It cannot be opened; the message says why, without user and password.
        MissingDependencyError: PyAV is not installed.
    """
    scheme = url.partition(":")[0].lower()
    if live is None and not scheme.startswith("http"):
        live = True
    # What is read while FFmpeg looks at the stream is not lost: `fflags nobuffer` would wait for the next key frame.
    options = {"analyzeduration": "1000000"}
    if scheme.startswith("rtsp"):
        options["rtsp_transport"] = "tcp"  # over UDP, lost packets smear pictures
    try:
        return VideoReader(url, name=redacted(url), live=live, options=options, timeout_s=_TIMEOUT_S)
    except VideoError as exc:
        host = urlsplit(url).hostname
        if isinstance(exc.__cause__, OSError) and host:
            try:
                socket.getaddrinfo(host, None)
            except (OSError, UnicodeError):
                raise VideoError(
                    f"{redacted(url)}: expected a video, no host is called {host}; check the name and the network."
                ) from exc
        raise


def redacted(text: str) -> str:
    """Return URLs, or a text that holds some, without user, password and what follows a question mark."""
    text = re.sub(r"(?<=://)[^\s!\"']*@", "", text)
    text = re.sub(r"(://[^\s?!\"']*)\?[^\s!\"']+", r"\1?…", text)
    return re.sub(r"(user-(?:id|pw)=)(\"[^\"]*\"|'[^']*'|\S+)", r"\1…", text)
