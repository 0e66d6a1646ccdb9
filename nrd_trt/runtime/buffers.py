"""Memory that grows: of one tensor on both sides of the copy, or on the device alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from nrd_trt.machine.cuda import Cuda, host_view

Shape = tuple[int, ...]


class Block:
    """Device memory that grows.

    Attributes:
        address: On the device, 0 before the first `reserve`.
        nbytes: How much there is.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.address = self.nbytes = 0

    def reserve(self, nbytes: int) -> None:
        """Make room for `nbytes`, elsewhere where there is less; what was in it is lost then."""
        if nbytes > self.nbytes:
            self.release()
            self.address = self._cuda.allocate(nbytes)
            self.nbytes = nbytes

    def release(self) -> None:
        """Free it; may be called again."""
        if self.nbytes:
            self._cuda.free(self.address)
        self.address = self.nbytes = 0


class Buffer:
    """Page-locked host memory and device memory of one tensor; on integrated GPUs they are the same memory.

    Attributes:
        device: Device address, 0 before the first `reserve`.
    """

    def __init__(self, cuda: Cuda, *, mapped: bool) -> None:
        self._cuda, self._mapped = cuda, mapped
        self._capacity = self._used = self._host = self.device = 0

    def fits(self, nbytes: int) -> bool:
        """Whether `reserve` will keep the addresses."""
        return nbytes <= self._capacity

    def reserve(self, nbytes: int) -> None:
        """Make room for `nbytes`, at other addresses where it does not fit."""
        self._used = nbytes
        if self.fits(nbytes):
            return
        self.release()
        self._used = nbytes
        self._host, self.device = self._cuda.allocate_host(nbytes, mapped=self._mapped)
        if not self._mapped:
            try:
                self.device = self._cuda.allocate(nbytes)
            except BaseException:
                self._cuda.free_host(self._host)
                self._host = 0
                raise
        self._capacity = nbytes

    def fill(self, array: np.ndarray) -> None:
        """Copy an array into the host side."""
        host_view(self._host, array.nbytes)[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    def read(self, shape: Shape, dtype: np.dtype[np.generic]) -> np.ndarray:
        """Return a fresh array of the host side."""
        return host_view(self._host, nbytes_of(shape, dtype)).copy().view(dtype).reshape(shape)

    def upload(self, stream: int) -> None:
        """Queue the copy to the device."""
        if not self._mapped:
            self._cuda.upload(self.device, self._host, self._used, stream)

    def download(self, stream: int) -> None:
        """Queue the copy from the device."""
        if not self._mapped:
            self._cuda.download(self._host, self.device, self._used, stream)

    def release(self) -> None:
        """Free both sides; may be called again."""
        if self._capacity:
            try:
                if not self._mapped:
                    self._cuda.free(self.device)
            finally:
                self._cuda.free_host(self._host)
        self._capacity = self._used = self._host = self.device = 0


def nbytes_of(shape: Shape, dtype: np.dtype[Any]) -> int:
    """Return the size of a dense tensor."""
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
