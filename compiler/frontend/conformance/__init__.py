"""Conformance checks of a file with the rules of ONNX, before anything is imported.

`check.py` applies the table of rules; `model_rules.py` looks at versions, functions and names, `node_rules.py` at nodes
and their schemas, `value_rules.py` at the values of attributes, `inference.py` asks ONNX's own strict type and shape
inference, and `shape_rules.py` looks at attributes and constants beside the shapes that are known then.
"""
