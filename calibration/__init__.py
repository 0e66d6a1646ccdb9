"""Ranges of activations for int8, measured in ONNX Runtime on images."""
