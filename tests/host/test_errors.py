"""Errors of host steps at run time, and those that are refused beforehand."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from ppuc.compiler.host.client import HostError, HostLimits, HostWorker
from ppuc.ir.errors import ModelError, UsageError
from tests.host.host_models import CUSTOM, MIXED, OPS, TINY, compiled, model, run, x46


def test_unknown_ops_are_all_named() -> None:
    text = """g (float[4] x) => (float[4] y) {
        a = com.example.Swirl(x) b = com.example.Twist(a) y = com.example.Shout(b, x) }"""
    with pytest.raises(ModelError) as caught:
        compiled(model(text))
    assert [d.what for d in caught.value.diagnostics] == [
        f"op com.example.{op} is not supported" for op in ("Swirl", "Twist", "Shout")
    ]
    assert [d.got for d in caught.value.diagnostics] == [f"1 node: '{n}'" for n in ("Swirl_0", "Twist_1", "Shout_2")]
    assert all("--host-ops" in (d.hint or "") for d in caught.value.diagnostics)


def test_without_the_host_such_models_are_refused(tmp_path: Path) -> None:
    onnx.save(model(MIXED), tmp_path / "m.onnx")
    result = run("compile", tmp_path / "m.onnx", "--no-host", "-o", tmp_path / "m.ppu")
    assert result.exit_code == 2
    assert "depends on the model's inputs" in result.stderr
    assert not (tmp_path / "m.ppu").exists()


def test_a_node_that_breaks_its_op_is_not_handed_over() -> None:
    with pytest.raises(ModelError, match="breaks the rules of its op"):
        compiled(model("g (float[4] x, float[3] z) => (float[4] y) { y = Add(x, z) }"))


def test_the_host_must_keep_to_the_types_it_was_compiled_for(tmp_path: Path) -> None:
    (tmp_path / "ops.py").write_text(OPS.replace("np.roll(x, angle)", "x[:2]"))
    source = model(CUSTOM)
    source.graph.value_info.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [4, 6]))
    program = compiled(source, host_ops=(tmp_path / "ops.py",))
    with pytest.raises(
        HostError, match=r"a type that differs from the model's\n  got: f32\[2, 6\]\n  expected: f32\[4, 6\]"
    ):
        program.run({"x": x46()})


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("import time; time.sleep(60)", "took too long"),
        ("import os; os._exit(7)", "process died\n  got: exit code 7"),
        ("bytearray(1 << 40)", "MemoryError"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_what_goes_wrong_on_the_host_is_one_error(body: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "ops.py").write_text(OPS.replace("return np.roll(x, angle)", body))
    worker = HostWorker((str(tmp_path / "ops.py"),), HostLimits(seconds=1.0))
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node("Swirl", ["x"], ["y"], domain="com.example")],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 6])],
            [helper.make_empty_tensor_value_info("y")],
        ),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)],
        ir_version=8,
    )
    with pytest.raises(HostError, match=what):
        worker.run(proto.SerializeToString(), {"x": x46()}, "here")
    worker.stop()


@pytest.mark.parametrize(("body", "what"), [("import os; os._exit(7)", "process died"), ("bytearray(1 << 40)", "Mem")])
def test_a_crash_of_the_host_is_one_error_on_the_command_line(body: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "ops.py").write_text(OPS.replace("return np.roll(x, angle)", body))
    onnx.save(model(CUSTOM), tmp_path / "m.onnx")
    options = ("--host-ops", tmp_path / "ops.py", "-t", TINY)
    result = run("run", tmp_path / "m.onnx", *options, "--output", tmp_path / "y.npz")
    assert result.exit_code == 2
    assert what in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "y.npz").exists()


def test_no_worker_outlives_the_compiler(tmp_path: Path) -> None:
    """Killed in the middle of a request that never ends, the compiler leaves nothing behind."""
    noted = tmp_path / "pid"
    endless = f"pathlib.Path({str(noted)!r}).write_text(str(os.getpid()))\n    while True: pass"
    (tmp_path / "ops.py").write_text("import os, pathlib\n" + OPS.replace("return np.roll(x, angle)", endless))
    onnx.save(model(CUSTOM), tmp_path / "m.onnx")
    arguments = ["run", tmp_path / "m.onnx", "-t", TINY, "--host-ops", tmp_path / "ops.py"]
    command = [sys.executable, "-c", "from ppuc.compiler.cli import main; main()", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert within(60, lambda: noted.exists() and bool(noted.read_text()))
    process.kill()
    process.wait()
    state = Path("/proc", noted.read_text(), "stat")
    assert within(10, lambda: not state.exists() or state.read_text().split()[2] == "Z")


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether a condition comes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def test_files_of_ops_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "ops.py").write_text("this is no Python")
    with pytest.raises(UsageError, match="a file of host ops fails"):
        compiled(model(CUSTOM), host_ops=(tmp_path / "ops.py",))
    with pytest.raises(UsageError, match="there is no such file"):
        compiled(model(CUSTOM), host_ops=(tmp_path / "none.py",))


def test_the_worker_starts_within_less_memory_than_it_may_take() -> None:
    """Under a limit of the shell (`ulimit -v`), which a process cannot raise again."""
    code = (
        "import resource; from ppuc.compiler.host.worker import limit_memory;"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)); limit_memory(8 << 30);"
        "assert resource.getrlimit(resource.RLIMIT_AS) == (4 << 30, 4 << 30); limit_memory(2 << 30);"
        "assert resource.getrlimit(resource.RLIMIT_AS) == (2 << 30, 2 << 30)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
