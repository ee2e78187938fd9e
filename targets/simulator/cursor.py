"""The position of a stream: runs its loops up to the next instruction.

Invariant: a stream moves in text order; it leaves all loops around a tile as soon as its unit has run its tiles.
"""

from __future__ import annotations

from ppuc.ir.jit.decorators import helper
from ppuc.targets.simulator.records import Instruction, Kernel, Loop, Place, Stream
from ppuc.targets.simulator.tables import NODE_END, NODE_INSTR, NODE_KERNEL, NODE_LOOP, Code, State


@helper
def _enter_loop(st: State, s: int, loop: Loop) -> bool:
    """Start a loop for this unit; False if it has no iterations."""
    start, step = loop.start, loop.step
    if loop.axis >= 0:
        coordinate = st.coordinate[s, loop.axis]
        start += coordinate.coord * step
        step *= coordinate.radix
    place: Place = st.place[s, loop.depth]
    place.trips = max(0, -((start - loop.stop) // step))
    place.it = 0
    place.at = start
    return bool(place.trips > 0)


@helper
def _enter_tile(c: Code, st: State, s: int, loop: Loop) -> bool:
    """Start one of the loops around the stream's current tile; False if the unit has run its tiles. Tiles are
    distributed in order over all units."""
    number, count, around = st.stream[s].tile, 1, c.kernel[loop.kernel].around
    place: Place = st.place[s, loop.depth]
    for j in range(around - 1, -1, -1):
        n = c.trips[loop.kernel, j]
        if j == loop.depth:
            place.it, place.trips = number // count % n, n
        count *= n
    if c.kernel[loop.kernel].group_rows > 1 and loop.depth >= around - 2:
        place.it = _in_group(c, loop, number)
    place.at = loop.start + place.it * loop.step
    return bool(number < count)


@helper
def _in_group(c: Code, loop: Loop, number: int) -> int:
    """Iteration of one of the two inner loops around a tile, where groups of `group_rows` rows of tiles are taken
    column by column."""
    kernel: Kernel = c.kernel[loop.kernel]
    rows, cols = c.trips[loop.kernel, kernel.around - 2], c.trips[loop.kernel, kernel.around - 1]
    number %= rows * cols
    first = number // (kernel.group_rows * cols) * kernel.group_rows
    number -= first * cols
    high = min(kernel.group_rows, rows - first)
    return int(number // high if loop.depth == kernel.around - 1 else first + number % high)


@helper
def _enter_kernel(c: Code, st: State, s: int, kernel: int) -> bool:
    """Set this unit's coordinates in a kernel's grid; False if it is not part of it."""
    q: Stream = st.stream[s]
    unit = (q.unit - c.kernel[kernel].first) % len(c.total)
    if unit >= c.kernel[kernel].units:
        return False
    q.tile = unit
    for a in range(c.radix.shape[1] - 1, -1, -1):
        n = c.radix[kernel, a]
        st.coordinate[s, a].coord = unit % n
        st.coordinate[s, a].radix = n
        unit //= n
    return True


@helper
def _end_of(c: Code, kernel: int, queue: int) -> int:
    k: Kernel = c.kernel[kernel]
    if queue < 2:
        return k.end_load if queue == 0 else k.end_store
    return k.end_tensor if queue == 2 else k.end_vector


@helper
def seek(c: Code, st: State, s: int) -> bool:
    """Run loops until the stream's next instruction; False at its end."""
    q: Stream = st.stream[s]
    pc = q.pc
    while True:
        op, arg = c.node[pc].op, c.node[pc].arg
        if op == NODE_INSTR:
            q.pc, q.head = pc, arg
            return True
        if op == NODE_KERNEL:
            pc = pc + 1 if _enter_kernel(c, st, s, arg) else _end_of(c, arg, s % 4)
            continue
        if op != NODE_LOOP and op != NODE_END:
            q.pc = pc
            return False
        loop: Loop = c.loop[arg]
        distributed = loop.depth < c.kernel[loop.kernel].around
        if op == NODE_LOOP:
            entered = _enter_tile(c, st, s, loop) if distributed else _enter_loop(st, s, loop)
            pc = loop.body if entered else loop.after
        elif distributed:
            q.tile += len(st.filled)
            pc = loop.root
        else:
            place: Place = st.place[s, loop.depth]
            place.it += 1
            if place.it < place.trips:
                place.at += loop.step * (st.coordinate[s, loop.axis].radix if loop.axis >= 0 else 1)
                pc = loop.body
            else:
                pc += 1


@helper
def set_masks(c: Code, st: State, s: int) -> None:
    """Set the head's masks: bit d of `first` (`last`) is set if loop d is in its first (last) iteration; for loops
    around tiles that run as blocks, if the unit is at its first (last) tile."""
    q: Stream = st.stream[s]
    ins: Instruction = c.ins[q.head]
    first, last, outer = 0, 0, 0
    if ins.kernel >= 0 and c.kernel[ins.kernel].around >= 0:
        outer = min(ins.depth, c.kernel[ins.kernel].around)
        tiles = 1
        for d in range(outer):
            tiles *= c.trips[ins.kernel, d]
        if q.tile < len(st.filled):
            first = (1 << outer) - 1
        if q.tile + len(st.filled) >= tiles:
            last = (1 << outer) - 1
    for d in range(outer, ins.depth):
        place: Place = st.place[s, d]
        if place.it == 0:
            first |= 1 << d
        if place.it == place.trips - 1:
            last |= 1 << d
    q.first, q.last = first, last
