"""A machine that executes the kernels' machine code on a CPU, and what their costs follow from."""
