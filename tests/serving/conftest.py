"""One run with its server for all tests of a file that leave it as it was; other files find no threads of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.serving.waiting import until

if TYPE_CHECKING:
    from tests.serving.rig import Rig


@pytest.fixture(scope="module")
def shared_rig() -> Iterator[Rig]:
    """Street of 20 frames per second, no token."""
    from tests.serving.rig import Rig

    with Rig() as rig:
        yield rig


@pytest.fixture
def rig(shared_rig: Rig) -> Iterator[Rig]:
    """The shared run, going on before and after."""
    shared_rig.pause.resume()
    until(lambda: shared_rig.hub.newest is not None)
    yield shared_rig
    shared_rig.pause.resume()
