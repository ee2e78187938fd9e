"""The frontend: reading ONNX models, checking them, and importing them into level-1 graphs."""
