"""Extension tables, which other packages add to through entry points.

An `Extensible` holds built-in entries. Looking up a missing key loads the entry points of its group, once, and retries.
`complete` loads them immediately, for listing all entries.

Invariant: no package is loaded before a key is missing or a list is requested; a package that cannot be used is a
PluginError that names it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ppuc.ir.errors import PluginError, PpucError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint, EntryPoints

K = TypeVar("K")
V = TypeVar("V")

Take = Callable[[str, Any], Mapping[K, V]]
"""Makes entries from an entry point's name and object. Raises ValueError for an invalid object."""


class Extensible(dict[K, V]):
    """A table that entry points of `group` add to; `packages` maps each added entry to its package."""

    def __init__(self, group: str, take: Take[K, V], own: Mapping[K, V] | None = None) -> None:
        super().__init__(own or {})
        self.group = group
        self.packages: dict[K, str] = {}
        self._take = take
        self._loaded: set[EntryPoint] = set()
        self._loading = self._whole = False

    def complete(self) -> Self:
        """The table with the entries of all packages. Raises PluginError for a package that cannot be used."""
        if not self._whole and not self._loading:
            self._loading = True  # a package may look up this table while it loads
            try:
                for point in _entry_points(self.group):
                    if point not in self._loaded:
                        self._add(point)
                self._whole = True
            finally:
                self._loading = False
        return self

    def _add(self, point: EntryPoint) -> None:
        try:
            found = self._take(point.name, point.load())
        except Exception as error:  # foreign code may raise anything
            raise _fault(point, f"{type(error).__name__}: {error}") from error
        taken = [str(key) for key in found if self.holds(key)]
        if taken:
            raise _fault(point, f"{taken[0]} is defined already, by ppuc or by another package")
        self.update(found)
        self.packages |= dict.fromkeys(found, point.dist.name if point.dist is not None else "")
        self._loaded.add(point)

    def __missing__(self, key: K) -> V:
        if key not in self:
            raise KeyError(key)
        return self[key]

    def __contains__(self, key: object) -> bool:
        return self.holds(key) or self.complete().holds(key)

    def holds(self, key: object) -> bool:
        """Whether `key` is in the table already, without loading packages."""
        return super().__contains__(key)

    def get(self, key: K, default: V | None = None) -> V | None:  # type: ignore[override] # all that tables need of it
        """The entry of `key`, else `default`."""
        if key in self:
            return self[key]
        return default


def _entry_points(group: str) -> list[EntryPoint]:
    return sorted(_installed().select(group=group), key=lambda point: (point.name, point.value))


@functools.cache
def _installed() -> EntryPoints:
    """The entry points of all packages."""
    from importlib.metadata import entry_points  # slow to import, and rarely needed

    return entry_points()  # type: ignore[return-value] # typed otherwise before Python 3.12; select is the same


def _fault(point: EntryPoint, got: str) -> PpucError:
    package = f"package {point.dist.name} {point.dist.version}" if point.dist is not None else "a package"
    what = f"cannot be used: its entry point '{point.name}' of {point.group} ({point.value}) does not load"
    return PluginError.of(package, what, got=got, hint="fix or uninstall the package")
