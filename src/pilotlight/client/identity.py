"""What a Python value is, as a digest that is equal in any process that makes an equal value.

A pickle's bytes won't do: sets are in any order, equal texts may or may not be one object, functions are numbered. So
values are taken apart by meaning: built-in ones by what they hold, functions by their code, what they close over, their
defaults and the globals of the user's own that they name, modules of the user's own by what is in them; all else as
pickling would take it apart. What then remains is taken as its pickle, and the digest says that it may not be stable.
"""

from __future__ import annotations

import copyreg
import dis
import functools
import types
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from pilotlight import wire
from pilotlight.client import pickling, sources
from pilotlight.client.digest import Child, Node, digest_of, hashed
from pilotlight.core.errors import ConfigError

_CONSTANTS = (type(None), bool, int, float, complex, type(...), type(NotImplemented))
_SLOT_TYPES = (types.MemberDescriptorType, types.GetSetDescriptorType)
_WRAPPERS = (property, staticmethod, classmethod, functools.cached_property)
_WRAPPED = ("fget", "fset", "fdel", "__func__", "func")
_OF_CLASSES = {"__dict__", "__weakref__", "__module__", "__doc__", "__firstlineno__", "__static_attributes__"}
_OF_MODULES = {
    "__builtins__",
    "__cached__",
    "__doc__",
    "__file__",
    "__loader__",
    "__name__",
    "__package__",
    "__path__",
    "__spec__",
    "__warningregistry__",
}
"""Names in a class or module that say nothing of what it does."""


@dataclass
class Identity:
    """`digest` of a value; `unstable`: types of what in it may look different in another process."""

    digest: str
    unstable: list[str] = field(default_factory=list[str])


def identify(value: Any) -> Identity:
    """Never raises: what can't be told apart counts as unstable."""
    reader = _Reader()
    return Identity(reader.read(value).hex(), sorted(set(reader.unstable)))


class _Reader:
    """Makes a graph of all that a value consists of, each object once."""

    def __init__(self) -> None:
        self._nodes: list[Node] = []
        self._numbers: dict[int, int] = {}
        self._waiting: list[tuple[int, Any]] = []
        self._alive: list[Any] = []
        """Keeps each object whose id is a key of `_numbers`."""
        self._sources: dict[str, list[tuple[str, bytes]]] = {}
        self.unstable: list[str] = []

    def read(self, value: Any) -> bytes:
        """A digest of a value by its meaning."""
        root = self._refer(value)
        while self._waiting:
            number, waiting = self._waiting.pop()
            self._nodes[number] = self._take_apart(waiting)
        return digest_of(self._nodes, root)

    def _refer(self, value: Any) -> Child:
        kind = cast("type[Any]", type(value))
        if kind in _CONSTANTS:
            return hashed(kind.__name__, [repr(value).encode()])
        if kind is str:
            return hashed("str", [value.encode("utf-8", "surrogatepass")])
        if kind in {bytes, bytearray}:
            return hashed(kind.__name__, [bytes(value)])
        if kind is wire.Context:
            return hashed("context", [value.id.encode()])
        if (number := self._numbers.get(id(value))) is None:
            number = self._numbers[id(value)] = len(self._nodes)
            self._nodes.append(Node(b""))
            self._alive.append(value)
            self._waiting.append((number, value))
        return number

    def _node(self, kind: str, parts: Iterable[Any], *, label: Iterable[bytes] = (), ordered: bool = True) -> Node:
        return Node(hashed(kind, label), [self._refer(part) for part in parts], ordered)

    def _take_apart(self, value: Any) -> Node:
        kind = cast("type[Any]", type(value))
        if kind in {tuple, list}:
            return self._node(kind.__name__, value)
        if kind in {set, frozenset}:
            return self._node(kind.__name__, value, ordered=False)
        if kind in {dict, types.MappingProxyType}:
            return self._node("dict", (part for pair in list(value.items()) for part in pair))
        if isinstance(value, types.ModuleType):
            return self._module(value)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.CodeType):
            return self._code(value)
        if isinstance(value, types.MethodType):
            return self._node("method", (value.__func__, value.__self__))
        if isinstance(value, functools.partial):
            part = cast("functools.partial[Any]", value)
            return self._node("partial", (part.func, part.args, _sorted(part.keywords)))
        if isinstance(value, pickling.CACHED):
            cached: Any = value
            if not pickling.is_found(cached):
                return self._node("cached", (cached.__wrapped__, cached.cache_parameters()))
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, _WRAPPERS):
            return self._node(kind.__name__, [getattr(cast("Any", value), name, None) for name in _WRAPPED])
        return self._other(value)

    # --- code

    def _function(self, function: types.FunctionType) -> Node:
        if not sources.is_users(function):
            return _named(function)
        cells: list[Any] = []
        for cell in function.__closure__ or ():
            try:
                cells.append(cell.cell_contents)
            except ValueError:  # not filled yet
                cells.append(None)
        names, imported = _names(function.__code__)
        named = {name: function.__globals__[name] for name in names if name in function.__globals__}
        read_there = [self._read_there(name) for name in imported]
        defaults = (function.__defaults__, function.__kwdefaults__)
        attributes = _sorted(function.__dict__)
        return self._node("function", (function.__code__, cells, defaults, _sorted(named), attributes, read_there))

    def _read_there(self, name: str) -> list[tuple[str, bytes]]:
        """What workers read from disk when a function imports this."""
        top = name.partition(".")[0]
        if top not in self._sources:
            self._sources[top] = sorted(sources.sources(top).items())
        return self._sources[top]

    def _code(self, code: types.CodeType) -> Node:
        """What it does: neither its lines' numbers nor its file."""
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        return self._node("code", (code.co_code, code.co_exceptiontable, code.co_consts, names, counts))

    def _class(self, given: type[Any]) -> Node:
        if not sources.is_users(given):
            return _named(given)
        members = {
            name: member
            for name, member in vars(given).items()
            if name not in _OF_CLASSES and not name.startswith("_abc_") and not isinstance(member, _SLOT_TYPES)
        }
        return self._node("class", (given.__qualname__, type(given), list(given.__bases__), _sorted(members)))

    def _module(self, module: types.ModuleType) -> Node:
        """One of the user's own counts with what is in it as it was loaded, since that is what is sent; an installed
        one by its name."""
        label = [module.__name__.encode()]
        if sources.is_local(module.__name__, module):
            inside = {name: value for name, value in vars(module).items() if name not in _OF_MODULES}
            return self._node("module", (_sorted(inside),), label=label)
        return self._node("module", (), label=[*label, _compiled(module)])

    # --- all else

    def _other(self, value: Any) -> Node:
        """As pickling takes it apart."""
        try:
            registered = copyreg.dispatch_table.get(cast("type[Any]", type(value)))  # patterns, unions of types
            reduced: Any = registered(value) if registered else value.__reduce_ex__(4)
            if isinstance(reduced, str):
                return _named(value, reduced)
            parts = list(reduced) + [None] * (5 - len(reduced))
            maker, arguments, state = parts[:3]
            listed, mapped = (None if part is None else list(part) for part in parts[3:5])
        except Exception:
            return self._pickled(value)
        return self._node("object", (maker, arguments, state, listed, mapped))

    def _pickled(self, value: Any) -> Node:
        name = f"{type(value).__module__}.{type(value).__qualname__}"
        self.unstable.append(name)
        try:
            return Node(hashed("pickle", [pickling.dumps(value, name)]))
        except ConfigError:
            return Node(hashed("unknown", [name.encode()]))  # whoever pickles the whole will say it


def _sorted(named: dict[str, Any]) -> list[tuple[str, Any]]:
    """Of names whose order is nobody's business."""
    return sorted(named.items(), key=lambda pair: str(pair[0]))


def _names(code: types.CodeType) -> tuple[list[str], list[str]]:
    """Names that a function and those within it look up, and modules that they import themselves."""
    names: set[str] = set()
    imported: set[str] = set()
    waiting = [code]
    while waiting:
        each = waiting.pop()
        names.update(each.co_names)
        imported.update(step.argval for step in dis.get_instructions(each) if step.opname == "IMPORT_NAME")
        waiting += [const for const in each.co_consts if isinstance(const, types.CodeType)]
    return sorted(names), sorted(name for name in imported if name)


def _compiled(module: types.ModuleType) -> bytes:
    """The file of an extension module that is not installed."""
    file = getattr(module, "__file__", None)
    if not file or file.endswith(".py") or sources.is_installed(file):
        return b""
    try:
        with open(file, "rb") as opened:
            return opened.read()
    except OSError:
        return b""


def _named(value: Any, name: str | None = None) -> Node:
    module = getattr(value, "__module__", None) or type(value).__module__
    return Node(hashed("global", [str(module).encode(), str(name or value.__qualname__).encode()]))
