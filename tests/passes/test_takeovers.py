"""Which earlier owners of its bytes a tensor waits for: all, unless one in between has waited."""

from __future__ import annotations

import itertools
import random

import pytest

from ppuc.compiler.passes.emit.takeovers import find_takeovers
from ppuc.ir.program import MemTensor
from ppuc.ir.types import DType, Space


def tensor(name: str, address: int, size: int, space: Space = Space.L2) -> MemTensor:
    return MemTensor(name, DType.U8, size, space, address, "temp", name)


def share(a: MemTensor, b: MemTensor) -> bool:
    return a.space is b.space and a.address < b.address + max(b.bytes, 1) and b.address < a.address + max(a.bytes, 1)


@pytest.mark.parametrize("seed", range(40))
def test_every_earlier_owner_is_waited_for_directly_or_through_another(seed: int) -> None:
    rng = random.Random(seed)
    count = rng.randrange(2, 40)
    spaces = (Space.L2, Space.HBM)
    tensors = [
        tensor(f"t{i}", rng.randrange(30), rng.choice((0, 1, 2, 5, 9, 16)), rng.choice(spaces)) for i in range(count)
    ]
    first = {t.name: step for t, step in zip(tensors, rng.sample(range(count), count), strict=True)}
    once = {t.name for t in tensors if rng.random() < 0.8}
    found = find_takeovers(tensors, first, once)
    for old, new in itertools.permutations(tensors, 2):
        if not share(old, new) or first[old.name] > first[new.name]:
            assert old.name not in found.get(new.name, ())
            continue
        between = [
            m
            for m in tensors
            if m.name in once and first[old.name] < first[m.name] < first[new.name] and share(old, m) and share(m, new)
        ]
        assert (old.name in found.get(new.name, ())) == (not between)


def test_the_direct_owners_of_a_reused_place() -> None:
    tensors = [tensor("a", 0, 8), tensor("b", 0, 4), tensor("c", 4, 4), tensor("d", 0, 8)]
    first = {"a": 0, "b": 1, "c": 2, "d": 3}
    assert find_takeovers(tensors, first, set(first)) == {"b": ["a"], "c": ["a"], "d": ["b", "c"]}
    assert find_takeovers(tensors, first, set()) == {"b": ["a"], "c": ["a"], "d": ["a", "b", "c"]}
