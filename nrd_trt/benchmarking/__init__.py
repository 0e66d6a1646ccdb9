"""Measuring: timing in turn, the state of host and device, what makes a figure doubtful, the picture of a run.

Sees the Runner contract and NumPy; NVML and Matplotlib are imported on use.
"""
