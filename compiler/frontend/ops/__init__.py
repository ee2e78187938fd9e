"""Importers of ONNX ops, a file per family."""
