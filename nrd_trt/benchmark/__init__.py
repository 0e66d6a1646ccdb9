"""Timing anything callable: warm-up, interleaved rounds, percentiles. NumPy only."""
