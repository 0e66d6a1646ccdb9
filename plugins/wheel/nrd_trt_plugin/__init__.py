"""Holds libnrd_trt_plugin.so and its registrar for each major of TensorRT, in ``trt10`` and so on; no code."""
