"""Rule N9 for RNN, GRU and LSTM: the shape of every operand follows from the sizes of X and the attributes; and for
ReverseSequence, which has lengths of sequences too."""

from __future__ import annotations

from collections.abc import Iterator

from ppuc.compiler.frontend.conformance.shaped_node import Broken, Rule, ShapedNode, contradicts

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def recurrent(node: ShapedNode) -> Iterator[Broken]:
    """X[steps, batch, inputs], or [batch, steps, inputs] with layout 1."""
    x, batch_first = node.shape(0), node.attributes.get("layout", 0) == 1
    if x is not None and len(x) != 3:
        yield "X has the wrong rank", list(x), "rank 3"
        return
    steps, batch, inputs = x if x is not None else (None, None, None)
    if batch_first:
        steps, batch = batch, steps
    directions = 2 if node.attributes.get("direction") == b"bidirectional" else 1
    hidden, gates = node.attributes["hidden_size"], GATES[node.site.node.op_type]
    state = (batch, directions, hidden) if batch_first else (directions, batch, hidden)
    for index, (name, wanted) in enumerate(
        (
            ("W", (directions, gates * hidden, inputs)),
            ("R", (directions, gates * hidden, hidden)),
            ("B", (directions, 2 * gates * hidden)),
            ("sequence_lens", (batch,)),
            ("initial_h", state),
            ("initial_c", state),
            ("P", (directions, 3 * hidden)),
        ),
        start=1,
    ):
        given = node.shape(index)
        if given is not None and contradicts(given, wanted):
            yield f"{name} has another shape", list(given), str(list(wanted)).replace("None", "?")
            return
    yield from _lengths(node, 4, steps)


def reverse_sequence(node: ShapedNode) -> Iterator[Broken]:
    """A length for each sequence of the batch."""
    x, given = node.shape(0), node.shape(1)
    if x is None:
        return
    batch, steps = (node.attributes.get(name, usual) for name, usual in (("batch_axis", 1), ("time_axis", 0)))
    if max(batch, steps) >= len(x):
        yield "an axis is out of range", max(batch, steps), f"less than {len(x)}"
    elif given is not None and contradicts(given, (x[batch],)):
        yield "sequence_lens has another shape", list(given), str([x[batch]])
    else:
        yield from _lengths(node, 1, x[steps])


def _lengths(node: ShapedNode, index: int, steps: int | None) -> Iterator[Broken]:
    """Constant lengths of sequences of up to `steps`."""
    lengths = node.constants.get(index)
    if lengths is not None and ((lengths < 0).any() or (steps is not None and (lengths > steps).any())):
        yield "the length of a sequence is out of range", lengths.tolist(), f"lengths from 0 to {steps}"


RECURRENT: dict[str, tuple[Rule, ...]] = {**dict.fromkeys(GATES, (recurrent,)), "ReverseSequence": (reverse_sequence,)}
"""Op -> its rules."""
