"""What a Python value is, as a digest that is equal in any process that makes an equal value.

A pickle's bytes won't do: sets are in any order, equal texts may or may not be one object, functions are numbered. So
values are taken apart by meaning: built-in ones by what they hold, functions by their code, what they close over, their
defaults and the globals of the user's own that they name; all else as pickling would take it apart. What then remains
is taken as its pickle, and the digest says that it may not be stable.
"""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from pilotlight.client import pickling
from pilotlight.core.errors import ConfigError

_CONSTANTS = (type(None), bool, int, float, complex, type(...), type(NotImplemented))


@dataclass
class Identity:
    """`digest` of a value; `unstable`: types of what in it may look different in another process."""

    digest: str
    unstable: list[str] = field(default_factory=list[str])


def identify(value: Any) -> Identity:
    """Never raises: what can't be told apart counts as unstable."""
    reader = _Reader()
    return Identity(hashlib.sha256(reader.read(value)).hexdigest(), sorted(set(reader.unstable)))


class _Reader:
    def __init__(self) -> None:
        self._open: dict[int, int] = {}
        """Objects that are being read, by id: a cycle is a step back of so many."""
        self._kept: list[Any] = []
        self.unstable: list[str] = []

    def read(self, value: Any) -> bytes:
        """A digest of a value by its meaning."""
        kind = cast("type[Any]", type(value))
        if kind in _CONSTANTS:
            return _hash(kind.__name__, [repr(value).encode()])
        if kind is str:
            return _hash("str", [value.encode("utf-8", "surrogatepass")])
        if kind in {bytes, bytearray}:
            return _hash(kind.__name__, [bytes(value)])
        if id(value) in self._open:
            return _hash("cycle", [str(len(self._open) - self._open[id(value)]).encode()])
        self._open[id(value)] = len(self._open)
        try:
            return self._read_compound(value, kind)
        finally:
            del self._open[id(value)]

    def _read_compound(self, value: Any, kind: type[Any]) -> bytes:
        if kind in {tuple, list}:
            return _hash(kind.__name__, map(self.read, value))
        if kind in {set, frozenset}:
            return _hash(kind.__name__, sorted(map(self.read, value)))
        if kind in {dict, types.MappingProxyType}:
            return _hash("dict", sorted(self.read(key) + self.read(item) for key, item in value.items()))
        if isinstance(value, types.ModuleType):
            return self._module(value)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.CodeType):
            return self._code(value)
        if isinstance(value, types.MethodType):
            return _hash("method", [self.read(value.__func__), self.read(value.__self__)])
        if isinstance(value, functools.partial):
            part = cast("functools.partial[Any]", value)
            return _hash("partial", map(self.read, (part.func, part.args, part.keywords)))
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, property | staticmethod | classmethod):
            wrapper = cast("Any", value)
            parts = [getattr(wrapper, name, None) for name in ("fget", "fset", "fdel", "__func__")]
            return _hash(kind.__name__, map(self.read, parts))
        return self._other(value)

    # --- code

    def _function(self, function: types.FunctionType) -> bytes:
        if not self._is_users(function):
            return _named(function)
        cells: list[Any] = []
        for cell in function.__closure__ or ():
            try:
                cells.append(cell.cell_contents)
            except ValueError:  # not filled yet
                cells.append(None)
        named = {name: function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__}
        defaults = (function.__defaults__, function.__kwdefaults__)
        return _hash("function", [self._code(function.__code__), *map(self.read, (cells, defaults, named))])

    def _code(self, code: types.CodeType) -> bytes:
        """What it does: neither its lines' numbers nor its file."""
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        return _hash("code", [code.co_code, *map(self.read, (code.co_consts, names, counts))])

    def _class(self, given: type[Any]) -> bytes:
        if not self._is_users(given):
            return _named(given)
        skipped = {"__dict__", "__weakref__", "__module__", "__doc__", "__firstlineno__", "__static_attributes__"}
        members = {name: member for name, member in vars(given).items() if name not in skipped}
        members = {name: member for name, member in members.items() if not name.startswith("_abc_")}
        plain = {name: member for name, member in members.items() if not isinstance(member, _SLOT_TYPES)}
        return _hash("class", [given.__qualname__.encode(), self.read(list(given.__bases__)), self.read(plain)])

    def _module(self, module: types.ModuleType) -> bytes:
        """One of the user's own counts with its file; an installed one by its name."""
        if pickling.is_local(module.__name__, module):
            try:
                with open(cast("str", module.__file__), "rb") as file:
                    return _hash("module", [module.__name__.encode(), file.read()])
            except OSError:
                pass
        return _hash("module", [module.__name__.encode()])

    def _is_users(self, named: Any) -> bool:
        """Whether workers get this by value: it is not importable there."""
        import sys

        module = sys.modules.get(named.__module__ or "")
        if named.__module__ == "__main__" or module is None or "<locals>" in named.__qualname__:
            return True
        return pickling.is_local(module.__name__, module) or "<lambda>" in named.__qualname__

    # --- all else

    def _other(self, value: Any) -> bytes:
        """As pickling takes it apart."""
        try:
            reduced = value.__reduce_ex__(4)
        except Exception:
            return self._pickled(value)
        self._kept.append(reduced)  # so that no id is used twice while we read
        if isinstance(reduced, str):
            return _hash("global", [type(value).__module__.encode(), reduced.encode()])
        parts = list(reduced) + [None] * (5 - len(reduced))
        maker, arguments, state = parts[:3]
        listed = list(parts[3]) if parts[3] is not None else None
        mapped = dict(parts[4]) if parts[4] is not None else None
        return _hash("object", [self._maker(maker), *map(self.read, (arguments, state, listed, mapped))])

    def _maker(self, maker: Any) -> bytes:
        return _named(maker) if not isinstance(maker, types.FunctionType | type) else self.read(maker)

    def _pickled(self, value: Any) -> bytes:
        name = f"{type(value).__module__}.{type(value).__qualname__}"
        self.unstable.append(name)
        try:
            return _hash("pickle", [pickling.dumps(value, name)])
        except ConfigError:
            return _hash("unknown", [name.encode()])  # whoever pickles the whole will say it


_SLOT_TYPES = (types.MemberDescriptorType, types.GetSetDescriptorType)


def _names(code: types.CodeType) -> list[str]:
    """Names that a function and those within it look up."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return sorted({*code.co_names, *(name for each in inner for name in _names(each))})


def _named(value: Any) -> bytes:
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    return _hash("global", [str(module).encode(), str(name or value).encode()])


def _hash(kind: str, parts: Iterable[bytes]) -> bytes:
    digest = hashlib.sha256(kind.encode())
    for part in parts:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.digest()
