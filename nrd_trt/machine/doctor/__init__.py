"""What this machine can do: probes of hardware, driver and packages, and the report that they add up to."""
