"""The bench of runners on the fake driver; every test of it must leave nothing behind and violate nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.runtime.bench import Bench

MakeBench = Callable[..., Bench]


@pytest.fixture
def make_bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeBench]:
    """Return what makes benches, with the arguments of `Bench`."""
    made: list[Bench] = []

    def make(*arguments: Any, **settings: Any) -> Bench:
        made.append(Bench(monkeypatch, *arguments, **settings))
        return made[-1]

    yield make
    for bench in made:
        assert (bench.cuda.alive, bench.cuda.violation) == ({}, "")


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    """A bench as it is without settings."""
    return make_bench()
