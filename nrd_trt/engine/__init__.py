"""From an ONNX file to a TensorRT plan, and the bundle that holds both. Import the module you need."""
