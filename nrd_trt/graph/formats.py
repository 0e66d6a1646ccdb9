"""The 8-bit numbers that quantised tensors hold, times a scale: int8, uint8 and E4M3. NumPy and ml_dtypes only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from nrd_trt.specs import Quantized


@dataclass(frozen=True, kw_only=True)
class NumberFormat:
    """A kind of 8-bit numbers.

    Attributes:
        name: Short name, such as ``"fp8"``.
        dtype: NumPy's type.
        largest: The number that stands for the range of a tensor. Everything beyond it becomes it.
        zero: The number that stands for 0.
    """

    name: str
    dtype: np.dtype
    largest: int
    zero: int = 0

    @property
    def zero_point(self) -> str:
        """Name of the file's constant that holds `zero`."""
        return f"{self.name}.{'middle' if self.zero else 'zero'}"

    def nearest(self, steps: np.ndarray) -> np.ndarray:
        """Return the number that is nearest to each value, ties to even; `zero` is not added.

        Args:
            steps: Values over the scale, of a float type.

        Returns:
            Numbers of the format in the type of `steps`.
        """
        within = np.clip(steps, -self.largest, self.largest)
        if self.dtype.kind in "iu":
            return np.asarray(np.rint(within))
        return np.asarray(within.astype(self.dtype).astype(steps.dtype))


INT8 = NumberFormat(name="int8", dtype=np.dtype(np.int8), largest=127)
"""Symmetric: -128 is not used."""
UINT8 = NumberFormat(name="uint8", dtype=np.dtype(np.uint8), largest=255)
"""Of tensors that hold no negative value, in a file for a CPU."""
UINT8_AROUND_128 = NumberFormat(name="uint8", dtype=np.dtype(np.uint8), largest=127, zero=128)
"""Of the others there."""
FP8 = NumberFormat(name="fp8", dtype=np.dtype(ml_dtypes.float8_e4m3fn), largest=448)
"""E4M3 with neither infinity nor more than one NaN: 4 bits of exponent, 3 of mantissa, subnormal below 2^-6."""

FORMATS: Mapping[Quantized, NumberFormat] = {"int8": INT8, "fp8": FP8}
"""Of weights by precision, and of activations in a file for a GPU."""
