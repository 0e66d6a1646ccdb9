"""The machine that executes kernels, as Python drives it: one shared library, compiled here on first use."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import toolchain
from .cubin import KernelImage, read_cubin
from .listing import Instruction, read_kernel, split_listing
from .packing import pack

COUNTS = np.dtype(
    [
        ("lanes", "u8"),
        ("wavefronts", "u8"),
        ("fewest_wavefronts", "u8"),
        ("sectors", "u8"),
        ("fewest_sectors", "u8"),
        ("lines", "u8"),
        ("issues", "u8", (4,)),
    ]
)
"""For each instruction, over all blocks: active lanes, wavefronts of shared memory and the fewest possible, sectors of
32 bytes of global memory likewise, lines of 128 bytes, and issues by scheduler."""

MAX_PATCH = 16
ALIGNMENT = 256


class ExecutionError(RuntimeError):
    """The machine stopped: an instruction that is not known, an access outside memory, threads that wait for ever."""


class _View(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("channel", ctypes.c_int64),
        ("pixel", ctypes.c_int64),
    )


class Decode(ctypes.Structure):
    """One decode, as driver.cpp takes it."""

    _fields_ = (
        ("classes", ctypes.c_int32),
        ("type", ctypes.c_int32),
        ("rows", ctypes.c_int32),
        ("columns", ctypes.c_int32),
        ("theta", _View),
        ("guidance", _View),
        ("x_table", ctypes.c_float * MAX_PATCH),
        ("y_table", ctypes.c_float * MAX_PATCH),
        ("mask", ctypes.c_void_p),
        ("mask_type", ctypes.c_int32),
        ("variant", ctypes.c_int32),
        ("prune", ctypes.c_bool),
    )


class _Range(ctypes.Structure):
    _fields_ = (("begin", ctypes.c_uint64), ("end", ctypes.c_uint64), ("writable", ctypes.c_bool))


class Launched(ctypes.Structure):
    """The launch that came last."""

    _fields_ = (
        ("kernel", ctypes.c_char * 64),
        ("blocks", ctypes.c_uint32),
        ("threads", ctypes.c_uint32),
        ("shared_bytes", ctypes.c_uint32),
    )


@cache
def library() -> ctypes.CDLL:
    """Return the compiled machine, from ``build/sass`` if its sources have not changed."""
    machine = toolchain.ROOT / "plugins" / "sass_machine"
    sources = sorted(machine.glob("*.cpp"))
    sources += [toolchain.KERNELS / "decode_launcher.cpp", toolchain.KERNELS / "host_reference.cpp"]
    headers = [*sorted(machine.glob("*.h")), *sorted(toolchain.KERNELS.glob("*.h"))]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in [*sources, *headers])).hexdigest()[:16]
    path = toolchain.ROOT / "build" / "sass" / f"machine_{digest}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        toolchain.compile_library(sources, path)
    loaded = ctypes.CDLL(str(path))
    loaded.machineError.restype = ctypes.c_char_p
    loaded.machineLaunched.restype = Launched
    loaded.machineSupports.restype = ctypes.c_bool
    return loaded


class Multiprocessor:
    """One architecture with some kernels.

    Args:
        architecture: Compute capability without its point: 87 or 90.
        images: What the cubin says of the kernels, by name.
        listings: Returns the text of the kernels, likewise; called when the first of them is run.
        shared_bytes: Shared memory that a block may have.
    """

    def __init__(
        self,
        architecture: int,
        images: Mapping[str, KernelImage],
        listings: Callable[[], Mapping[str, str]],
        *,
        shared_bytes: int = 163 * 1024,
    ) -> None:
        self.architecture = architecture
        self.images = dict(images)
        self.code: dict[str, list[Instruction]] = {}
        self._listings = cache(listings)
        self._library = library()
        self._shared_bytes = shared_bytes
        self.select()
        for name in self.images:
            self._library.machineNameKernel(name.encode())

    @classmethod
    def open(cls, architecture: int, cubin: Path, *, shared_bytes: int = 163 * 1024) -> Multiprocessor:
        """Return a machine with the kernels of a cubin, which must be of the architecture."""

        def listings() -> Mapping[str, str]:
            return split_listing(toolchain.disassemble(cubin))

        return cls(architecture, read_cubin(cubin), listings, shared_bytes=shared_bytes)

    @property
    def kept_shared_bytes(self) -> int:
        """Bytes of a block's static shared memory that are the driver's; before sm_90 they are counted elsewhere."""
        return 1024 if self.architecture >= 90 else 0

    def select(self) -> None:
        """Make this the device that launches go to."""
        self._library.machineSelect(self.architecture, self._shared_bytes)

    def load(self, name: str) -> None:
        """Bring a kernel's code into the machine, if it is not there yet.

        Raises:
            ValueError: An instruction has no entry in the table of pipes.
        """
        if name in self.code:
            return
        self.code[name] = read_kernel(name, self._listings()[name])
        image, packed = self.images[name], pack(self.code[name], self.architecture)
        self._library.machineLoadKernel(
            name.encode(),
            packed.ctypes.data_as(ctypes.c_void_p),
            len(packed),
            image.constants,
            len(image.constants),
            image.parameter_offset,
            image.parameter_bytes,
            self.kept_shared_bytes,
            -(-image.shared_bytes // 16) * 16,
        )

    def launch(self, name: str, blocks: int, threads: int, shared_bytes: int, parameters: bytes) -> None:
        """Run every block of a kernel that takes these parameters.

        Raises:
            ExecutionError: The machine stopped; the message is the instruction and the reason.
        """
        self.select()
        self.load(name)
        self._choose(range(blocks))
        self._check(self._library.machineLaunch(name.encode(), blocks, threads, shared_bytes, parameters))

    def plan(self, decode: Decode) -> Launched | None:
        """Return what the launcher would launch, or None where the variant does not support the decode."""
        self.select()
        if not self._library.machineSupports(ctypes.byref(decode)):
            return None
        self._choose([])
        self._check(self._library.machineDecode(ctypes.byref(decode)))
        return Launched.from_buffer_copy(self._library.machineLaunched())

    def decode(self, decode: Decode, blocks: Sequence[int], *, last_warp_first: bool = False) -> None:
        """Let the launcher launch and run the given blocks.

        Args:
            decode: What to decode.
            blocks: Their numbers.
            last_warp_first: The order in which the warps of a block run between barriers.

        Raises:
            ExecutionError: As for `launch`.
        """
        planned = self.plan(decode)
        if planned is None:
            raise ExecutionError("the launcher does not support this variant here")
        self.load(planned.kernel.decode())
        self._choose(blocks)
        self._library.machineSetOrder(last_warp_first)
        self._check(self._library.machineDecode(ctypes.byref(decode)))

    def reset(self, name: str) -> None:
        """Forget what a kernel did."""
        self.select()
        self._library.machineReset(name.encode())

    def counts(self, name: str) -> NDArray[np.void]:
        """Return `COUNTS` for each instruction of a kernel, since it was reset."""
        self.select()
        counts = np.zeros(len(self.code[name]), COUNTS)
        self._library.machineGetCounts(name.encode(), counts.ctypes.data_as(ctypes.c_void_p))
        return counts

    def simulate(self, name: str, stream: Sequence[int], resident: int) -> NDArray[np.int64]:
        """Return the cycles in which blocks end on one multiprocessor, in order.

        Args:
            name: Name of the kernel.
            stream: The blocks, by their place among those that were executed since the kernel was reset.
            resident: Number of blocks at a time.
        """
        self.select()
        finished, given = np.zeros(len(stream), np.int64), np.asarray(stream, np.uint32)
        pointers = (array.ctypes.data_as(ctypes.c_void_p) for array in (given, finished))
        self._library.machineSimulate(name.encode(), next(pointers), len(given), resident, next(pointers))
        return finished

    def _choose(self, blocks: Sequence[int]) -> None:
        chosen = np.asarray(blocks, np.uint32)
        self._library.machineSetBlocks(chosen.ctypes.data_as(ctypes.c_void_p), len(chosen))

    def _check(self, status: int) -> None:
        if status:
            reason = self._library.machineError().decode()
            raise ExecutionError(reason or f"the launcher returned status {status}")


Array = NDArray[np.generic]


def allocate(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return an array of zeros that lies where the driver would put it: sectors and lines depend on that."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % ALIGNMENT
    return memory[first : first + size].view(dtype).reshape(shape)


def allow(*arrays: tuple[Array, bool]) -> None:
    """Let kernels read these arrays of `allocate`, and write those with True. Nothing else is global memory."""
    ranges = (_Range * len(arrays))()
    for target, (array, writable) in zip(ranges, arrays, strict=True):
        begin = array.ctypes.data
        if begin % ALIGNMENT:
            raise ValueError("allow: expected arrays of allocate()")
        target.begin, target.end, target.writable = begin, begin + array.nbytes, writable
    library().machineAllow(ranges, len(arrays))
