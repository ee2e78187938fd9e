"""What a program is: types, the three levels, their text and their meaning. Knows no ONNX file and no hardware
number."""
