"""Power and temperature of the device, read now and then on a thread of its own."""

from __future__ import annotations

import threading
from typing import Any

from nrd_trt.machine.clocks import Probe, Reading, open_probe

_EVERY_S = 2.0


class DeviceWatch:
    """Keeps the last reading while entered; where no instrument is there, it has none.

    Args:
        probe: The instrument, closed on leaving; None looks for one.

    Attributes:
        reading: The last one, or None.
    """

    def __init__(self, probe: Probe | None = None) -> None:
        self.reading: Reading | None = None
        self._probe = probe
        self._leaving = threading.Event()
        self._thread: threading.Thread | None = None

    def figures(self) -> dict[str, float] | None:
        """Return what can be read, by name; None where nothing can."""
        if self.reading is None:
            return None
        names = ("power_w", "temperature_c", "clock_mhz", "memory_used_mib")
        known = {name: value for name in names if (value := getattr(self.reading, name)) is not None}
        return known or None

    def __enter__(self) -> DeviceWatch:
        self._probe = self._probe or open_probe()[0]
        if self._probe is not None:
            self._thread = threading.Thread(target=self._watch, args=[self._probe], name="device", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._leaving.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, probe: Probe) -> None:
        while not self._leaving.is_set():
            self.reading = probe.read()
            self._leaving.wait(_EVERY_S)
        probe.close()
