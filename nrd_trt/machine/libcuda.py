"""libcuda, the C interface of the CUDA driver, by ctypes: found, declared and called here, and nowhere else.

It comes with every NVIDIA driver, on a Jetson too, and keeps its ABI, so no package has to fit the driver. What is used
of it stands below as ``cuda.h`` writes it, and a test holds each prototype and constant against that file. ctypes
releases the GIL for the time of a call.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

from nrd_trt.errors import RunnerError

LIBRARY = "libcuda.so.1"
OLDEST_CUDA = 12000
"""The oldest driver's CUDA version that TensorRT 10 runs on, as ``cuDriverGetVersion`` tells it."""

CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16
CU_DEVICE_ATTRIBUTE_INTEGRATED = 18
CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76
CUDA_ERROR_INVALID_VALUE = 1
CU_MEMHOSTALLOC_DEVICEMAP = 2
CU_MEMORYTYPE_DEVICE = 2
CU_POINTER_ATTRIBUTE_CONTEXT = 1
CU_POINTER_ATTRIBUTE_MEMORY_TYPE = 2
CU_STREAM_NON_BLOCKING = 1
CU_EVENT_BLOCKING_SYNC = 1
CU_EVENT_DISABLE_TIMING = 2
CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1

PROTOTYPES = """
cuGetErrorName(CUresult, const char **)
cuGetErrorString(CUresult, const char **)
cuInit(unsigned int)
cuDriverGetVersion(int *)
cuDeviceGet(CUdevice *, int)
cuDeviceGetCount(int *)
cuDeviceGetName(char *, int, CUdevice)
cuDeviceGetPCIBusId(char *, int, CUdevice)
cuDeviceGetUuid_v2(CUuuid *, CUdevice)
cuDeviceGetAttribute(int *, CUdevice_attribute, CUdevice)
cuDeviceTotalMem_v2(size_t *, CUdevice)
cuDevicePrimaryCtxRetain(CUcontext *, CUdevice)
cuDevicePrimaryCtxRelease_v2(CUdevice)
cuCtxPushCurrent_v2(CUcontext)
cuCtxPopCurrent_v2(CUcontext *)
cuCtxSynchronize(void)
cuMemGetInfo_v2(size_t *, size_t *)
cuMemAlloc_v2(CUdeviceptr *, size_t)
cuMemFree_v2(CUdeviceptr)
cuMemHostAlloc(void **, size_t, unsigned int)
cuMemHostGetDevicePointer_v2(CUdeviceptr *, void *, unsigned int)
cuMemFreeHost(void *)
cuPointerGetAttribute(void *, CUpointer_attribute, CUdeviceptr)
cuMemcpyHtoDAsync_v2(CUdeviceptr, const void *, size_t, CUstream)
cuMemcpyDtoHAsync_v2(void *, CUdeviceptr, size_t, CUstream)
cuMemcpyDtoDAsync_v2(CUdeviceptr, CUdeviceptr, size_t, CUstream)
cuStreamCreate(CUstream *, unsigned int)
cuStreamSynchronize(CUstream)
cuStreamWaitEvent(CUstream, CUevent, unsigned int)
cuStreamDestroy_v2(CUstream)
cuEventCreate(CUevent *, unsigned int)
cuEventRecord(CUevent, CUstream)
cuEventSynchronize(CUevent)
cuEventElapsedTime(float *, CUevent, CUevent)
cuEventDestroy_v2(CUevent)
cuStreamBeginCapture_v2(CUstream, CUstreamCaptureMode)
cuStreamEndCapture(CUstream, CUgraph *)
cuGraphInstantiateWithFlags(CUgraphExec *, CUgraph, unsigned long long)
cuGraphLaunch(CUgraphExec, CUstream)
cuGraphExecDestroy(CUgraphExec)
cuGraphDestroy(CUgraph)
"""

_C_TYPES: dict[str, Any] = {
    "float": ctypes.c_float,
    "int": ctypes.c_int,
    "size_t": ctypes.c_size_t,
    "unsigned int": ctypes.c_uint,
    "unsigned long long": ctypes.c_ulonglong,
    "char *": ctypes.c_char_p,
    "const char *": ctypes.c_char_p,
    "void *": ctypes.c_void_p,
    "const void *": ctypes.c_void_p,
    "CUdeviceptr": ctypes.c_uint64,
    "CUuuid": ctypes.c_char * 16,
    **dict.fromkeys(
        ("CUdevice", "CUdevice_attribute", "CUpointer_attribute", "CUresult", "CUstreamCaptureMode"), ctypes.c_int
    ),
    **dict.fromkeys(("CUcontext", "CUevent", "CUgraph", "CUgraphExec", "CUstream"), ctypes.c_void_p),
}
OUT_OF_MEMORY = "the device is out of memory, close other programs or build a smaller size"
_NO_DEVICE = "no GPU is visible, check `nvidia-smi` and CUDA_VISIBLE_DEVICES"
_TOO_OLD = "update the NVIDIA driver to branch 525 or newer."
_REMEDIES = {
    "CUDA_ERROR_OUT_OF_MEMORY": OUT_OF_MEMORY,
    "CUDA_ERROR_NO_DEVICE": _NO_DEVICE,
    "CUDA_ERROR_INVALID_DEVICE": _NO_DEVICE,
    "CUDA_ERROR_STUB_LIBRARY": "this is the toolkit's file to link with, take its folder out of LD_LIBRARY_PATH",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "the driver was updated and not loaded yet, restart the machine",
    "CUDA_ERROR_INVALID_CONTEXT": "this thread has no CUDA context, or the object is of another one; "
    "call within `with cuda.current():`",
}


class NoDriverError(RunnerError):
    """This machine has no NVIDIA driver: it is no machine with a GPU that fails."""


class LibCuda:
    """The loaded library, ready to be asked for devices.

    Raises:
        NoDriverError: There is no driver.
        RunnerError: It is too old, or cannot start; the message says what to do.
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError as exc:
            raise NoDriverError(
                f"CUDA: the driver's library cannot be loaded ({exc}); install the NVIDIA driver, or start the "
                "container with NVIDIA's runtime."
            ) from exc
        self._results: dict[str, Any] = {}
        for line in PROTOTYPES.split("\n")[1:-1]:
            name, _, rest = line.rstrip(")").partition("(")
            arguments = [_ctype(text) for text in rest.split(", ") if text != "void"]
            try:
                function = getattr(self._library, name)
            except AttributeError as exc:
                raise RunnerError(f"CUDA: {LIBRARY} has no {name}; {_TOO_OLD}") from exc
            function.argtypes, function.restype = arguments, ctypes.c_int
            self._results[name] = getattr(arguments[0], "_type_", None) if arguments else None
        self.call("cuInit", 0)
        self.version = self.get("cuDriverGetVersion")
        if self.version < OLDEST_CUDA:
            raise RunnerError(
                f"CUDA: expected a driver for CUDA {version_text(OLDEST_CUDA)} or newer, got one for "
                f"{version_text(self.version)}; {_TOO_OLD}"
            )

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function by its name in the table.

        Raises:
            RunnerError: It failed; the message names the function, the error and, where there is one, the remedy.
        """
        self.check(name, self.code_of(name, *arguments))

    def check(self, name: str, code: int) -> None:
        """Raise as `call` does where a call returned an error."""
        if code:
            error, text = (self._text(function, code) for function in ("cuGetErrorName", "cuGetErrorString"))
            remedy = f"; {_REMEDIES[error]}" if error in _REMEDIES else ""
            raise RunnerError(f"CUDA: {name} failed with {error} ({text}){remedy}.")

    def code_of(self, name: str, *arguments: Any) -> int:
        """Call a function and return its CUresult, 0 for success."""
        return int(getattr(self._library, name)(*arguments))

    def get(self, name: str, *arguments: Any) -> Any:
        """Call a function that writes its answer to its first argument, and return that; a null handle is 0."""
        answer = self._results[name]()
        self.call(name, ctypes.byref(answer), *arguments)
        return answer.value or 0

    def _text(self, function: str, code: int) -> str:
        text = ctypes.c_char_p()
        getattr(self._library, function)(code, ctypes.byref(text))
        return (text.value or b"CUresult %d" % code).decode(errors="replace")


def is_initialised() -> bool:
    """Whether this process uses CUDA already, through whichever library, so that its GPUs are chosen."""
    try:
        library = ctypes.CDLL(LIBRARY, mode=os.RTLD_NOW | os.RTLD_NOLOAD)
    except OSError:
        return False
    return bool(library.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) == 0)


def version_text(version: int) -> str:
    """Return ``"12.6"`` for 12060."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _ctype(text: str) -> Any:
    """Return the type of an argument; ctypes checks what it is given against it."""
    return _C_TYPES[text] if text in _C_TYPES else ctypes.POINTER(_ctype(text.removesuffix("*").strip()))
