"""Build time: from a PyTorch model or any ONNX file to an explainable ONNX file."""
