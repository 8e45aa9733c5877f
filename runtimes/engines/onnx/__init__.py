"""The engine `onnx`: encoders in ONNX Runtime."""
