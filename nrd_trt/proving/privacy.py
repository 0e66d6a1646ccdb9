"""Texts of a report that is shown to strangers: no names of people or hosts, and no folder of a home. Leaf module."""

from __future__ import annotations

import getpass
import re
import socket
from collections.abc import Callable
from pathlib import Path

_NOBODY = {"", "admin", "jetson", "localhost", "nvidia", "root", "tegra-ubuntu", "ubuntu", "user"}
"""Names that systems come with; they tell of nobody, and replacing them would tear words apart."""


def cleaner(output: Path) -> Callable[[str], str]:
    """Return a function that takes out of a text what tells of this user and this host.

    Args:
        output: Folder of the report, which is called ``DIR``.
    """
    places = {str(output.resolve()): "DIR", str(Path.home()): "~"}  # as others name them: in full
    whole = "|".join(re.escape(place) for place in sorted(places, key=len, reverse=True) if len(place) > 1)
    folders = rf"(?:{whole})(?![A-Za-z0-9_-])"
    names = {_user(): "USER", socket.gethostname(): "HOST", socket.gethostname().split(".")[0]: "HOST"}
    told = sorted((name for name in names if name.lower() not in _NOBODY), key=len, reverse=True)
    words = rf"(?<![A-Za-z0-9])(?:{'|'.join(map(re.escape, told)) or '(?!)'})(?![A-Za-z0-9])"

    def clean(text: str) -> str:
        text = re.sub(folders, lambda found: places[found[0]], text)
        text = re.sub(r"/(?:home|Users)/[^/\s:'\"]+", "~", text)
        return re.sub(words, lambda found: names[found[0]], text)

    return clean


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number without a name
        return ""
