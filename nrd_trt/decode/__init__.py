"""The per-patch decode: torch reference and ONNX function. Import the module you need."""
