"""Ranges of activations for int8, measured in ONNX Runtime on images. Imported by `nrd_trt.cli` only, on use."""
