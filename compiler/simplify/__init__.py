"""Cleaning an ONNX model up: ONNX in, ONNX out."""
