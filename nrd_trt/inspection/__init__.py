"""What a bundle, a plan or an ONNX file holds."""
