"""Comparing masks: metrics, gates and the record they leave. NumPy only."""
