"""Every number of a target is read: changing one that is not marked informational changes a time, an energy, a program
or a refusal; changing those that are changes nothing.

A number may matter on some machines only (a cache, a mesh, a throttled clock) and for some programs only, so each is
tried in several settings until something changes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import ppuc
from ppuc.compiler.cli import cli
from ppuc.compiler.predict.case import Case
from ppuc.compiler.predict.prediction import Predictor
from ppuc.compiler.report.interval import with_number
from ppuc.ir.errors import CapacityError, TargetError
from ppuc.ir.program import Copy, Program, Segment
from ppuc.ir.types import DType, Space
from ppuc.ir.vector import VectorProgram
from ppuc.targets.artifact import Artifact
from ppuc.targets.assembler import encode
from ppuc.targets.description import Leaf, Target, builtin_targets, load_target, override
from ppuc.targets.simulator.run import simulate
from tests.support.onnx_text import model_of
from tests.support.simulator_programs import RELU, Gemm, chain_program, gemm_program, program, tensor

TINY = load_target("ppu-tiny")
DTYPES = tuple(TINY.tensor.ii_clk)

Outcome = Callable[[Target], object]
"""What becomes of a program on a machine: numbers, a digest or an error's text."""


def timed(source: Program, vectors: tuple[VectorProgram, ...] = (RELU,)) -> Outcome:
    """Time, energy and power of a program."""

    def outcome(target: Target) -> object:
        try:
            profile = simulate(source, vectors, target, {}, None).profile
        except CapacityError as error:
            return str(error)
        return repr((profile.cycles, profile.clock_ghz, profile.energy_joules, profile.power, profile.kernels))

    return outcome


def compiled(target: Target) -> object:
    """The program that two products and what lies between them become."""
    try:
        made = artifact(target)
    except CapacityError as error:
        return str(error)
    encoded = encode(dataclasses.replace(made.program, target_hash=""), made.vectors)
    digest = hashlib.sha256(encoded.code.tobytes() + encoded.descriptors.tobytes())
    return digest.hexdigest() + json.dumps(encoded.symbols)


@cache
def artifact(target: Target = TINY) -> Artifact:
    return ppuc.compile(products(), target=target, precision="bf16").artifact


@cache
def products() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = {"w0": rng.standard_normal((64, 96), np.float32), "w1": rng.standard_normal((96, 96), np.float32)}
    text = "(float[72, 64] x) => (float[72, 96] y) { h = MatMul(x, w0) e = Tanh(h) y = MatMul(e, w1) }"
    return model_of(f"products {text}", weights)


def attended(target: Target) -> object:
    """Predicted times of attention: of a prompt, of a token whose heads share keys, and of one whose heads do not."""
    predictor = Predictor(target, intervals=False)
    sizes = ((2, 2, 1, 8, 8, 16, 1), (2, 8, 2, 1, 32, 16, 0), (2, 2, 2, 1, 32, 16, 0))
    return [predictor.predict(Case("attention", dims, "bf16"), "")["us"] for dims in sizes]


def softened(target: Target) -> object:
    """The predicted time of a softmax of long rows."""
    return Predictor(target, intervals=False).predict(Case("softmax", (64, 96), "f32"), "")["us"]


def from_host() -> Program:
    """A copy out of the host's memory."""
    tensors = [tensor("x", 5000, Space.HOST, 0, "input"), tensor("y", 5000, Space.HBM, 0, "output")]
    return program("copy", tensors, Segment("s0", (), (Copy(0, "y", "x", 0, 5000),), ()))


def product(dtype: DType = DType.F32, space: Space = Space.L2, units: tuple[int, int] = (2, 1)) -> Program:
    """A product whose operands and result lie in `space`."""
    made = gemm_program(Gemm(70, 40, 72, grid=units, dtype=dtype))
    (segment,) = made.segments
    (kernel,) = segment.kernels
    kernel = dataclasses.replace(kernel, params=tuple(dataclasses.replace(p, space=space) for p in kernel.params))
    tensors = tuple(dataclasses.replace(t, space=space) for t in made.tensors)
    return dataclasses.replace(made, tensors=tensors, segments=(dataclasses.replace(segment, kernels=(kernel,)),))


GRID = override(TINY, "cu=12", "cu_per_ce=2", "noc.kind=mesh")
CACHED = override(GRID, "l2.managed=cache", "noc.multicast=within a CE", "l2.bytes=1024", "hbm.gbs=100")
BUSY = override(GRID, "hbm.gbs=100", "hbm.turnaround=0.3", "store.in_flight=1", "store.start_clk=300")
ARRAY = override(
    TINY, "tensor.organisation=systolic", "tensor.dataflow=weight", *(f"tensor.fragment.{d}=1,16,16" for d in DTYPES)
)
ROOMY = override(TINY, "tensor.lanes=4", "tensor.lane_grid=2,2", "l1.bytes=131072", "acc.bytes=65536")
STARVED = override(GRID, "noc.link_bytes_per_clk=1", "hbm.mapping=direct", "hbm.channels=16", "hbm.gbs=20")
HOT = override(TINY, "energy.vector_op_pj=1e3")
SLOWEST = override(TINY, "power.tdp_w=0.11", "energy.vector_op_pj=1e4")
LIBRARY = override(TINY, "attention.kernels_before=1,1", "attention.block_us=50", "attention.group=4")
REREAD = override(TINY, "attention.block_us=0.001", "attention.reread=0.001")
UNFUSED = override(TINY, "attention.score_passes=40")
COOLED = override(TINY, "thermal.c_per_w=300", "energy.vector_op_pj=1e5")

SETTINGS: dict[str, tuple[Target, Outcome]] = {
    "product": (TINY, timed(product())),
    "product of device memory": (TINY, timed(product(space=Space.HBM))),
    "tiled layout": (override(TINY, "hbm.layout_tile=8,128"), timed(product(space=Space.HBM))),
    "chain": (TINY, timed(chain_program())),
    "chain, a launch a kernel": (override(TINY, "launch.granularity=kernel"), timed(chain_program())),
    "tiles in blocks": (override(TINY, "launch.tiles=blocks"), timed(product())),
    "cached": (CACHED, timed(product(space=Space.HBM, units=(4, 2)))),
    "mesh": (GRID, timed(product(units=(4, 2)))),
    "starved": (STARVED, timed(product(space=Space.HBM, units=(4, 2)))),
    "hot": (HOT, timed(product())),
    "at its slowest clock": (SLOWEST, timed(product())),
    "limited by its temperature": (COOLED, timed(product())),
    "busy": (BUSY, timed(product(space=Space.HBM, units=(4, 2)))),
    "systolic": (ARRAY, timed(product())),
    "host": (TINY, timed(from_host())),
    **{str(d): (TINY, timed(product(d))) for d in (DType.BF16, DType.F16, DType.I8)},
    **{str(d): (TINY, timed(product(d))) for d in (DType.F8E4M3, DType.F8E5M2, DType.F4E2M1)},
    "compiled": (TINY, compiled),
    "attention": (LIBRARY, attended),
    "attention of large groups": (REREAD, attended),
    "attention of separate kernels": (UNFUSED, attended),
    "softmax": (override(TINY, "softmax.held=64", "softmax.rows=2"), softened),
    "compiled, its time": (TINY, lambda target: timed(artifact().program, artifact().vectors)(target)),
    "compiled with room": (ROOMY, compiled),
}


@cache
def usual(setting: str) -> object:
    machine, outcome = SETTINGS[setting]
    return outcome(machine)


def values(leaf: Leaf) -> Iterator[str]:
    """Other values of a number, as `--set` takes them."""
    value = leaf.value
    if "|" in leaf.unit:
        yield from (word for word in leaf.unit.split("|") if word != value)
    elif isinstance(value, bool):
        yield json.dumps(not value)
    elif isinstance(value, tuple):
        yield from (",".join(str(2 * v if i == k else v) for k, v in enumerate(value)) for i in range(len(value)))
    elif isinstance(value, int):
        yield from (str(v) for v in (2 * value, value // 2, 16 * value, 1, 3) if v not in (value, 0))
    elif isinstance(value, float):
        yield from (str(v) for v in (2 * value, value / 2, value + 1, (value + 1) / 2) if v not in (value, 0.0))


def witness(path: str) -> str:
    """The first setting and value that show that a number is read; "" when none does."""
    refused: set[str] = set()
    for setting, (machine, outcome) in SETTINGS.items():
        leaf = next(leaf for leaf in machine.leaves() if leaf.path == path)
        for value in values(leaf):
            try:
                changed = override(machine, f"{path}={value}")
                refused.add("")
            except TargetError as error:
                refused.add(error.diagnostics[0].where)
                if outcome is compiled or path not in TIED:
                    continue
                changed = with_number(machine, path, typed(value, leaf.value))
            if outcome(changed) != usual(setting):
                return f"{setting} with {value}"
    fixed = all(where.endswith(f": {path}") for where in refused)
    return "any other value is refused" if fixed and refused else ""


TIED = ("tensor.organisation", "tensor.dataflow", "tensor.lanes", "tensor.lane_grid")
"""Numbers that contradict others when they change alone: programs that exist can still be timed."""


def typed(text: str, like: Any) -> Any:
    """A value of `values` as the type of the number."""
    return tuple(map(int, text.split(","))) if isinstance(like, tuple) else type(like)(text)


@pytest.mark.parametrize("path", [leaf.path for leaf in TINY.leaves() if not leaf.informational])
def test_changing_a_number_changes_something(path: str) -> None:
    assert witness(path)


@pytest.mark.parametrize("setting", ["chain", "cached", "hot", "compiled"])
def test_informational_numbers_change_nothing(setting: str) -> None:
    machine, outcome = SETTINGS[setting]
    changed = machine
    for leaf in machine.leaves():
        if leaf.informational and not leaf.path.startswith("peak_tops."):
            other = not leaf.value if leaf.unit == "flag" else "other" if leaf.unit == "text" else leaf.value + 1
            changed = with_number(changed, leaf.path, other)
    assert changed != machine
    assert outcome(changed) == usual(setting)


def test_every_number_is_tried() -> None:
    """The machine of these tests has every number of the schema, and of the tables by type all rows that are read."""
    paths = {leaf.path for leaf in TINY.leaves()}
    for name in builtin_targets():
        missing = {leaf.path for leaf in load_target(name).leaves() if not leaf.informational} - paths
        assert not missing, name


def test_what_is_informational_is_shown() -> None:
    result = CliRunner().invoke(cli, ["targets", "ppu-tiny"])
    assert result.exit_code == 0
    shown = {line.split()[0]: line.split()[1] for line in result.output.splitlines() if line[:1].isalpha()}
    assert shown["l1.banks"] == "*"
    assert shown["l1.bytes"] == "16384"
    assert "* informational: describes the machine, but no program, time or energy depends on it." in result.output
    numbers = json.loads(CliRunner().invoke(cli, ["targets", "ppu-tiny", "--json"]).output)["numbers"]
    assert {n["key"] for n in numbers if n["informational"]} == {
        *("clock.base_mhz", "tensor.native_fp8", "tensor.native_mx", "l1.banks", "l2.slices"),
        *("l2.bytes_per_clk_per_slice", "hbm.kind", "hbm.sector_bytes", "host.pcie", "icn.links"),
        *("icn.gbs_per_link_per_dir", "icn.latency_us", "icn.server", "nic.gbps_per_card"),
        *("temperature.hw_slow_c", "temperature.shutdown_c", "energy.nic_pj_per_byte"),
        *(key for key in (n["key"] for n in numbers) if key.startswith("peak_tops.")),
    }
    large = json.loads(CliRunner().invoke(cli, ["targets", "zhenwu-m890", "--json"]).output)["numbers"]
    modes = {"tensor.fragment.tf32", "tensor.ii_clk.tf32", "energy.mac_pj.tf32"}
    assert modes <= {n["key"] for n in large if n["informational"]}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (
            "load.queues_per_cu=2",
            "load.queues_per_cu: is fixed: programs have one stream per queue\n  got: 2\n  expected: 1",
        ),
        (
            "stage.in_flight=32",
            "stage.in_flight: exceeds what the simulator keeps in flight\n  got: 32\n  expected: at most 31",
        ),
        ("hbm.refresh=1", "hbm.refresh: must be below 1, or no bandwidth remains\n  got: 1.0"),
    ],
)
def test_what_the_simulator_cannot_follow_is_refused(assignment: str, message: str) -> None:
    with pytest.raises(TargetError) as caught:
        override(TINY, assignment)
    assert str(caught.value) == f"--set {assignment}: {message}"
