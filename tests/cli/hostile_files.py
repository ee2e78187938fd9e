"""Malicious files: each builder writes one into a folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HUGE = 1 << 40
Build = Callable[[Path], None]


def _model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int | str]] | None = None,
    weights: dict[str, np.ndarray] | None = None,
    output: str = "y",
    **more: object,
) -> onnx.ModelProto:
    declared = {"x": [4, 6]} if inputs is None else inputs
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in declared.items()],
        [helper.make_empty_tensor_value_info(output)],
        [numpy_helper.from_array(a, n) for n, a in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, **more)


def _saved(model: onnx.ModelProto) -> Build:
    return lambda path: (path / "m.onnx").write_bytes(model.SerializeToString()) and None


def _bytes(data: bytes) -> Build:
    return lambda path: (path / "m.onnx").write_bytes(data) and None


def _node(op: str, inputs: list[str], output: str = "y", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], **attributes)


PLAIN = _model([_node("MatMul", ["x", "w"])], weights={"w": np.ones((6, 9), np.float32)})


def _external(location: str, prepare: Callable[[Path], None], offset: int = 0) -> Build:
    def build(path: Path) -> None:
        model = onnx.ModelProto()
        model.CopyFrom(PLAIN)
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", str(offset)), ("length", "216")):
            tensor.external_data.add(key=key, value=value)
        folder = path / "inner"
        folder.mkdir()
        (path / "secret.bin").write_bytes(b"\0" * 216)
        prepare(folder)
        (path / "m.onnx").unlink(missing_ok=True)
        (folder / "m.onnx").write_bytes(model.SerializeToString())
        (path / "m.onnx").symlink_to(folder / "m.onnx")

    return build


def _named(x: str, y: str, w: str, node: str) -> Build:
    """A product of names that a file or a call might take for something else."""
    nodes = [_node("MatMul", [x, w], "h", name=node), _node("Relu", ["h"], y, name=f"{node}2")]
    return _saved(_model(nodes, {x: [4, 6]}, {w: np.ones((6, 9), np.float32)}, y))


def _lying(dims: list[int], size: int) -> Build:
    model = onnx.ModelProto()
    model.CopyFrom(PLAIN)
    tensor = model.graph.initializer[0]
    del tensor.dims[:]
    tensor.dims.extend(dims)
    tensor.raw_data = b"\0" * size
    return _saved(model)


def _function(name: str, calls: list[str]) -> onnx.FunctionProto:
    nodes, at = [], "a"
    for i, called in enumerate(calls):
        nodes.append(helper.make_node(called, [at], [f"t{i}"], domain="local" if called.startswith("F") else ""))
        at = f"t{i}"
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_function("local", name, ["a"], [at], nodes, opsets)


def _functions(*functions: onnx.FunctionProto) -> Build:
    return _saved(_model([helper.make_node("F0", ["x"], ["y"], domain="local")], functions=list(functions)))


def _nested_ifs(depth: int) -> onnx.ModelProto:
    nodes = [_node("Relu", ["x"], "r")]
    for i in range(depth):
        graph = helper.make_graph(nodes, f"g{i}", [], [helper.make_empty_tensor_value_info("r")])
        nodes = [helper.make_node("If", ["c"], ["r"], then_branch=graph, else_branch=graph if i < 1 else _leaf())]
    return _model([*nodes, _node("Neg", ["r"])], weights={"c": np.array(True)})


def _leaf() -> onnx.GraphProto:
    return helper.make_graph([_node("Neg", ["x"], "r")], "leaf", [], [helper.make_empty_tensor_value_info("r")])


def _loop(trips: int, inner: int = 0, condition: str = "") -> onnx.ModelProto:
    body_nodes = [_node("Identity", ["k"], "more"), _node("Add", ["v", "v"], "w")]
    if inner:
        body_nodes[1] = helper.make_node("Loop", ["inner", "", "v"], ["w"], body=_body([
            _node("Identity", ["k2"], "more2"), _node("Add", ["u", "x"], "w2")], ("i2", "k2", "u"), ("more2", "w2")
        ))  # fmt: skip
    body = _body(body_nodes, ("i", "k", "v"), ("more", "w"))
    weights = {"m": np.array(trips), "inner": np.array(inner), "yes": np.array(True)}
    return _model([helper.make_node("Loop", ["" if condition else "m", condition, "x"], ["y"], body=body)],
                  weights=weights)  # fmt: skip


def _body(nodes: list[onnx.NodeProto], inputs: tuple[str, str, str], outputs: tuple[str, str]) -> onnx.GraphProto:
    kinds = (TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT)
    given = [helper.make_tensor_value_info(n, k, [] if k != TensorProto.FLOAT else [4, 6])
             for n, k in zip(inputs, kinds, strict=True)]  # fmt: skip
    taken = [helper.make_tensor_value_info(outputs[0], TensorProto.BOOL, []),
             helper.make_tensor_value_info(outputs[1], TensorProto.FLOAT, [4, 6])]  # fmt: skip
    return helper.make_graph(nodes, "body", given, taken)


def _deep_type(depth: int) -> onnx.ModelProto:
    model = _model([_node("Relu", ["x"])])
    info = onnx.ValueInfoProto(name="q")
    at = info.type
    for _ in range(depth):
        at = at.sequence_type.elem_type
    at.tensor_type.elem_type = TensorProto.FLOAT
    model.graph.input.append(info)
    return model


def _with(change: Callable[[onnx.ModelProto], object], model: onnx.ModelProto = PLAIN) -> Build:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    change(copy)
    return _saved(copy)


def _sized(op: str, size: int, dtype: type = np.int64, **attributes: object) -> Build:
    sizes = np.array([size, size], dtype)
    return _saved(_model([_node(op, ["x", "s"], **attributes)], weights={"s": sizes}))


HOSTILE: dict[str, Build] = {
    "nothing": _bytes(b""),
    "text": _bytes(b"this is no model"),
    "zeros": _bytes(b"\0" * 4096),
    "random": _bytes(np.random.default_rng(0).bytes(10_000)),
    "truncated": _bytes(PLAIN.SerializeToString()[:-40]),
    "flipped": _bytes(bytes(b ^ 0x55 if i % 97 == 5 else b for i, b in enumerate(PLAIN.SerializeToString()))),
    "endless_varint": _bytes(b"\x3a" + b"\xff" * 1000),
    "length_beyond_the_file": _bytes(b"\x3a\xff\xff\xff\xff\x7f" + b"a" * 100),
    "no_graph": _saved(onnx.ModelProto(ir_version=8)),
    "no_nodes": _saved(_model([])),
    "no_opset": _with(lambda m: m.ClearField("opset_import")),
    "opset_far_away": _with(lambda m: setattr(m.opset_import[0], "version", 1 << 40)),
    "opset_negative": _with(lambda m: setattr(m.opset_import[0], "version", -3)),
    "cycle": _saved(_model([_node("Add", ["x", "b"], "a"), _node("Relu", ["a"], "b"), _node("Neg", ["b"])])),
    "self_cycle": _saved(_model([_node("Add", ["x", "y"])])),
    "missing_name": _saved(_model([_node("Add", ["x", "nobody"])])),
    "missing_output": _saved(_model([_node("Relu", ["x"], "z")])),
    "duplicate_output": _saved(_model([_node("Relu", ["x"]), _node("Neg", ["x"])])),
    "duplicate_weight": _with(lambda m: m.graph.initializer.append(m.graph.initializer[0])),
    "duplicate_input": _with(lambda m: m.graph.input.append(m.graph.input[0])),
    "too_many_operands": _saved(_model([_node("Relu", ["x"] * 50)])),
    "raw_too_short": _lying([6, 9], 100),
    "raw_too_long": _lying([6, 9], 10_000),
    "raw_of_a_huge_shape": _lying([HUGE, HUGE], 216),
    "negative_dims": _lying([-6, -9], 216),
    "wrong_element_type": _with(lambda m: setattr(m.graph.initializer[0], "data_type", 999)),
    "lying_output": _with(lambda m: m.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [7, 7, 7]))),
    "lying_inner": _with(lambda m: m.graph.value_info.append(
        helper.make_tensor_value_info("x", TensorProto.STRING, ["a"]))),
    "huge_input": _saved(_model([_node("Relu", ["x"])], {"x": [HUGE, HUGE]})),
    "negative_input": _saved(_model([_node("Relu", ["x"])], {"x": [-1, 6]})),
    "huge_expand": _sized("Expand", HUGE),
    "huge_tile": _sized("Tile", HUGE),
    "huge_pad": _saved(_model([_node("Pad", ["x", "s"])], weights={"s": np.array([0, 0, HUGE, HUGE])})),
    "huge_resize": _saved(_model([_node("Resize", ["x", "", "s"])],
                                 weights={"s": np.array([1e12, 1e12], np.float32)})),
    "huge_constant_of_shape": _saved(_model([_node("ConstantOfShape", ["s"])], {},
                                            {"s": np.array([HUGE, HUGE])})),
    "large_constant_of_shape": _saved(_model([_node("ConstantOfShape", ["s"])], {},
                                             {"s": np.array([100_000, 100_000])})),
    "large_f64_on_the_host": _saved(_model(
        [_node("ConstantOfShape", ["s"], "c", value=numpy_helper.from_array(np.array([1.0]))),
         _node("Exp", ["c"], "e"), _node("Cast", ["e"], "f", to=1), _node("ReduceSum", ["f"], "y")],
        {}, {"s": np.array([100_000, 100_000])})),
    "huge_range": _saved(_model([_node("Range", ["a", "b", "c"])], {},
                                {"a": np.array(0), "b": np.array(HUGE), "c": np.array(1)})),
    "huge_one_hot": _saved(_model([_node("Cast", ["x"], "i", to=7), _node("OneHot", ["i", "d", "v"])],
                                  weights={"d": np.array(HUGE), "v": np.array([0, 1], np.float32)})),
    "huge_kernel": _saved(_model([_node("MaxPool", ["x"], kernel_shape=[HUGE, HUGE])], {"x": [1, 1, 8, 8]})),
    "huge_padding": _saved(_model([_node("MaxPool", ["x"], kernel_shape=[2, 2], pads=[HUGE] * 4)],
                                  {"x": [1, 1, 8, 8]})),
    "huge_stride": _saved(_model([_node("MaxPool", ["x"], kernel_shape=[2, 2], strides=[HUGE] * 2)],
                                 {"x": [1, 1, 8, 8]})),
    "wrong_attribute_type": _saved(_model([_node("Softmax", ["x"], axis="first")])),
    "huge_axis": _saved(_model([_node("Softmax", ["x"], axis=HUGE)])),
    "outside_by_path": _external("../secret.bin", lambda p: None),
    "outside_absolute": _external("/etc/passwd", lambda p: None),
    "outside_by_symlink": _external("w.bin", lambda p: (p / "w.bin").symlink_to(p.parent / "secret.bin")),
    "outside_by_hard_link": _external("w.bin", lambda p: os.link(p.parent / "secret.bin", p / "w.bin")),
    "outside_by_folder_link": _external("d/secret.bin", lambda p: (p / "d").symlink_to(p.parent)),
    "external_missing": _external("w.bin", lambda p: None),
    "external_folder": _external("w.bin", lambda p: (p / "w.bin").mkdir()),
    "external_fifo": _external("w.bin", lambda p: os.mkfifo(p / "w.bin")),
    "external_device": _external("w.bin", lambda p: (p / "w.bin").symlink_to("/dev/zero")),
    "external_beyond": _external("w.bin", lambda p: (p / "w.bin").write_bytes(b"\0" * 216) and None, HUGE),
    "external_nameless": _external("", lambda p: None),
    "external_nul": _external("w\0.bin", lambda p: None),
    "external_only_nul": _external("\0", lambda p: None),
    "external_long": _external("w" * 300, lambda p: None),
    "external_deep": _external("d/" * 3000 + "w", lambda p: None),
    "external_dot": _external(".", lambda p: None),
    "function_calls_itself": _functions(_function("F0", ["F0"])),
    "functions_call_each_other": _functions(_function("F0", ["F1"]), _function("F1", ["F0"])),
    "functions_chain": _functions(*(_function(f"F{i}", [f"F{i + 1}"]) for i in range(4000)),
                                  _function("F4000", ["Relu"])),
    "functions_double": _functions(*(_function(f"F{i}", [f"F{i + 1}"] * 2) for i in range(60)),
                                   _function("F60", ["Relu"])),
    "ifs_in_ifs": _saved(_nested_ifs(30)),
    "deep_type": _saved(_deep_type(30)),
    "loop_of_many_trips": _saved(_loop(1 << 62)),
    "loops_in_loops": _saved(_loop(5_000, 5_000)),
    "endless_loop": _saved(_loop(0, 0, "yes")),
    "control_characters": _saved(_model([helper.make_node("Bad\x1b[31m", ["x"], ["y"], name="n\x07\r\n\x1b]0;t\x07")])),
    "markup": _saved(_model([helper.make_node("Bad[/red]", ["x"], ["y"], name="[bold]n[/bold][/] [link=http://a]b")])),
    "surrogates": _bytes(PLAIN.SerializeToString().replace(b"MatMul", b"Mat\xff\xfel")),
    "nul_in_names": _named("x\0", "y\0", "w\0", "n\0"),
    "names_of_300_characters": _named(*(c * 300 for c in "xywn")),
    "names_like_arguments": _named("file", "allow_pickle", "self", "kwargs"),
    "names_like_paths": _named("../x", "../../y", "/etc/w", "~/n"),
    "names_of_blanks": _named(" ", "\n", "\t", "\r"),
    "empty_op": _saved(_model([helper.make_node("", ["x"], ["y"])])),
    "long_name": _saved(_model([helper.make_node("Relu", ["x"], ["y"], name="n" * 1_000_000)])),
    "option_as_dim": _saved(_model([_node("Relu", ["x"])], {"x": ["--help", "N=1\n"]})),
}  # fmt: skip
"""Name -> what writes `m.onnx` into a folder."""
