"""A few mutated files for every reader, the same in each run, and those that once failed; `make fuzz` reads many."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from tests.hostile.fuzz import attempt
from tests.hostile.loaders import LOADERS, cases, prepare

CORPUS = Path(__file__).parent / "corpus"
CASES, FEWER = 12, {"requests, twenty a case": 2, "training state": 3}


@pytest.mark.parametrize("name", LOADERS)
def test_mutated_files_are_refused_or_read(name: str) -> None:
    for number, (content, read) in enumerate(islice(cases(name, 0), FEWER.get(name, CASES))):
        outcome = attempt(content, read)
        assert not outcome.defect, (number, outcome)


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_once_failed_does_not_fail_again(path: Path) -> None:
    prepare()
    for read in LOADERS[path.parent.name.replace("_", " ")].ways:
        outcome = attempt(path.read_bytes(), read)
        assert not outcome.defect, outcome


def test_an_honest_file_is_read_in_every_way() -> None:
    """Else the cases would be refused for something else than what was changed."""
    prepare()
    for name, loader in LOADERS.items():
        for content in loader.honest():
            for read in loader.ways:
                outcome = attempt(content, read)
                assert outcome.ending == ("refused" if name == "mmseg configuration" else "right"), (name, outcome)
