"""The intermediate representation: types, three levels, their text form and semantics. Independent of ONNX files and
hardware numbers."""
