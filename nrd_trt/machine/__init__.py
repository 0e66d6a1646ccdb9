"""What this machine is: CUDA, GPU, driver, clocks, power, host."""
