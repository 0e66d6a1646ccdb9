"""The report of a self-test: ``selftest.json``, and the same as one HTML page that needs no network."""

from __future__ import annotations

import getpass
import json
import re
import socket
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from nrd_trt.files import atomic_file
from nrd_trt.proving.record import RUNS, PartResult, SelfTest
from nrd_trt.specs import PRECISIONS

if TYPE_CHECKING:
    from jinja2 import Template

JSON_FILE, HTML_FILE = "selftest.json", "selftest.html"
CONTENT = (
    "name and compute capability of the GPU, versions of driver, CUDA, TensorRT and packages, what nrd-trt doctor "
    "says of the machine, and for each part its result, reason, time, figures and, where it failed, the end of its "
    "output. Names of the user and the host and home folders are taken out; images are drawn by the toolkit"
)
"""What a reader of the report learns of a machine."""

_NOBODY = {"", "admin", "jetson", "localhost", "nvidia", "root", "tegra-ubuntu", "ubuntu", "user"}
"""Names that systems come with; they tell of nobody, and replacing them would tear words apart."""


def write_report(folder: Path, test: SelfTest) -> None:
    """Write both files into a folder, each whole or not at all; existing ones are replaced."""
    with atomic_file(folder / JSON_FILE) as temporary:
        temporary.write_text(json.dumps(test.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with atomic_file(folder / HTML_FILE) as temporary:
        temporary.write_text(render_report(test), encoding="utf-8")


def render_report(test: SelfTest) -> str:
    """Fill in ``selftest.html.j2``; every text is escaped."""
    named = {part.name: part for part in test.parts}
    lanes = dict.fromkeys(part.name.rpartition("/")[0] for part in test.parts if part.flavour)
    return _template().render(
        test=test,
        columns=(*PRECISIONS, *RUNS),
        grid={lane: [named.get(f"{lane}/{column}") for column in (*PRECISIONS, *RUNS)] for lane in lanes},
        others=[part for part in test.parts if part.flavour is None],
        reasons=_reasons(test),
        content=CONTENT,
    )


def cleaner(output: Path) -> Callable[[str], str]:
    """Return a function that takes out of a text what tells of this user and this host.

    Args:
        output: Folder of the report, which is called ``DIR``.
    """
    places = {str(output.resolve()): "DIR", _home(): "~"}  # as others name them: in full
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


def _reasons(test: SelfTest) -> list[tuple[str, list[PartResult]]]:
    """Group the parts that were not run by their reason."""
    found: dict[str, list[PartResult]] = {}
    for part in test.with_result("not run"):
        found.setdefault(part.why, []).append(part)
    return list(found.items())


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("selftest.html.j2")


def _home() -> str:
    try:
        return str(Path.home())
    except RuntimeError:  # as for `_user`
        return ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number without a name
        return ""
