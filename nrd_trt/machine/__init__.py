"""What machine this is.

Facts: `host` (files, commands, processor, memory), `jetson` (board, power mode, tegrastats), `gpu` (GPUs and driver),
`cuda` (device memory, streams, graphs), `clocks` (a GPU during a run), `software` (packages and what they can do here).
Judgement: `doctor` takes all `findings` and makes rows of them (`package_rows`, `hardware_rows`).
"""
