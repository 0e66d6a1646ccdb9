"""Named passes from ONNX graph to ONNX graph. Each returns a new model and leaves its argument alone."""
