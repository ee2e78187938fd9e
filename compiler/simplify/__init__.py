"""Simplification of ONNX models: ONNX in, ONNX out."""
