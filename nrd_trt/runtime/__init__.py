"""Runners: one contract (`base`), one module per backend. Import the module you need."""
