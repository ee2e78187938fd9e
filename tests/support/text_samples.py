"""One small module with everything at every level, as text and as an object; it verifies."""

from __future__ import annotations

import numpy as np

from ppuc.ir.module import Module
from ppuc.ir.resource import Resource
from ppuc.ir.text import parse_module

WEIGHT = Resource.of(np.arange(32 * 48, dtype=np.float32).reshape(32, 48), "w0")
BIAS = Resource.of(np.linspace(-1, 1, 48, dtype=np.float32), "b0")

GRAPH = f"""\
graph @mlp(%x: f32[70, 32] @l2) -> (%y: f32[70, 48] @l2) {{
  %w: f32[32, 48] @hbm = const() {{value = res("{WEIGHT.key}", "w0")}} loc("Gemm_0")
  %b: f32[48] @hbm = const() {{value = res("{BIAS.key}", "b0")}} loc("Gemm_0")
  %y: f32[70, 48] @l2 = group(%x, %w, %b) {{kind = "matmul", kernel = "gemm_0"}} loc("Gemm_0", "Relu \\"1\\"") \
body @gemm_0(
      %p0: f32[70, 32], %p1: f32[32, 48], %p2: f32[48]) -> (%r: f32[70, 48]) {{
    %m: f32[70, 48] = matmul(%p0, %p1) {{transpose_a = false, transpose_b = false, out = none}} loc("Gemm_0")
    %s: f32[70, 48] = add(%m, %p2) loc("Gemm_0")
    %h: f32[] = const() {{value = f32[] {{0.1}}}}
    %t: f32[70, 48] = mul(%s, %h)
    %r: f32[70, 48] = relu(%t) loc("Relu \\"1\\"")
  }}
}}
"""

KERNEL = """\
kernel @gemm_0 {grid = (cm = 2)}(
    %x: f32[70, 32] @l2, %w: f32[32, 48] @hbm, %b: f32[1, 48] @hbm strides [0, 1] offset 0,
    out %out: f32[70, 48] @l2 of %y) loc("Gemm_0", "Relu \\"1\\"") {
  %at: f32[32, 16] @l1 ring 2
  %bt: f32[16, 48] @l1 ring 2
  %bias: f32[1, 48] @l1 ring 1
  %c: f32[32, 48] @acc ring 1
  %o: f32[32, 48] @l1 ring 1
  load %bias <- %b[0, 0]
  for %m in 0..70 step 32 over cm {
    for %k in 0..32 step 16 {
      load %at <- %x[%m, %k]
      load %bt <- %w[%k, 0]
      mma %c <- %at, %bt {start = (%k), valid = (%m < 70, _, _)}
    }
    vec %o <- @bias_relu(%c, %bias) {valid = (%m < 70, _)}
    store %out[%m, 0] <- %o
  }
}
"""

VECTOR = """\
vector @bias_relu(%0: f32, %1: f32) -> (%3: f32) {
  %2 = add(%0, %1)
  %3 = relu(%2)
}
"""

PLACEMENT = """\
placement {
  "x" @l2 at 0 bytes 8960
  "gemm_0/at" @l1 at 0 bytes 4096
}
"""

PROGRAM = """\
program @mlp {target = "ppu-tiny", hash = "0123"} {
  tensor %x.h: f32[2240] @host at 0 input "x"
  tensor %x: f32[2240] @l2 at 0 temp "x"
  tensor %w: f32[1536] @hbm at 0 const "w0"
  tensor %b: f32[48] @hbm at 6144 const "b0"
  tensor %y: f32[3360] @l2 at 8960 output "y"
  input "X:0" = %x.h
  output "Y:0" = %y
  segment @s0 {
    counter %x.c of %x {kind = "rows", first = 0, block = 1024, expect = [1, 1, 1]}
    counter %y.d of %y {kind = "done", first = 3, block = 3360, expect = [2]}
    copy %x <- %x.h[0..2240] queue 0 {bump(%x.c touched)} loc("Gemm_0")
    kernel @gemm_0 {grid = (cm = 2)}(
        %x: f32[70, 32] @l2, %w: f32[32, 48] @hbm, %b: f32[1, 48] @hbm strides [0, 1] offset 0,
        out %out: f32[70, 48] @l2 of %y) loc("Gemm_0", "Relu \\"1\\"") {
      ring %at: f32[32, 16] @l1 at 0 slot 2048 depth 2 by load to (tensor)
      ring %bt: f32[16, 48] @l1 at 4096 slot 3072 depth 2 by load to (tensor)
      ring %bias: f32[1, 48] @l1 at 10240 slot 192 depth 1 by load to (vector)
      ring %c: f32[32, 48] @acc at 0 slot 6144 depth 1 by tensor to (vector)
      ring %o: f32[32, 48] @l1 at 10432 slot 6144 depth 1 by vector to (store)
      queue load {
        load.box %bias <- %b[0, 0] {claim(%bias, 0), push(%bias, 0)}
        for %m in 0..70 step 32 over cm {
          for %k in 0..32 step 16 {
            load.box %at <- %x[%m, %k] {claim(%at, 2), push(%at, 2), wait(%x.c touched)}
            load.box %bt <- %w[%k, 0] {claim(%bt, 2), push(%bt, 2)}
          }
        }
      }
      queue tensor {
        for %m in 0..70 step 32 over cm {
          for %k in 0..32 step 16 {
            mma %c <- %at, %bt {start = (%k), claim(%c, 1), wait(%at, 2), wait(%bt, 2), pop(%at, 2), pop(%bt, 2), \
push(%c, 1)}
          }
        }
      }
      queue vector {
        for %m in 0..70 step 32 over cm {
          vec %o <- @bias_relu(%c, %bias) {valid = (%m < 70, _), claim(%o, 1), wait(%c, 1), wait(%bias, 0), \
pop(%c, 1), pop(%bias, 0), push(%o, 1)}
        }
      }
      queue store {
        for %m in 0..70 step 32 over cm {
          store.box %out[%m, 0] <- %o {wait(%o, 1), pop(%o, 1), bump(%y.d all)}
        }
      }
    }
  }
}
"""

HEADER = """\
module {
  target "ppu-tiny" "0123"
  option "precision" = "fp32"
  input "X:0" = %x
  output "Y:0" = %y
  pipeline "fold"
  pipeline "tile{tries=8}"
  pipeline "emit"
  done "fold"
  done "tile{tries=8}"
}
"""

MODULE = "\n".join([HEADER, GRAPH, KERNEL, VECTOR, PLACEMENT, PROGRAM])

RESOURCES = {r.key: r for r in (WEIGHT, BIAS)}


def sample_module() -> Module:
    """The module that MODULE spells."""
    return parse_module(MODULE, RESOURCES, "sample.ppir")
