"""From a checkpoint, an ONNX file or a bundle to a validated bundle."""
