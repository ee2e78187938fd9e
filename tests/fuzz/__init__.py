"""Random ONNX nodes of every op that ppuc claims to run, and what becomes of them."""
