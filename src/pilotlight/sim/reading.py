"""Tables of a TOML file as dataclasses, and back: the fields of a dataclass are the keys that may be written.

A field whose name ends in `_s` takes a time (`"10m"`, or seconds), one that ends in `_bytes` or `_bytes_per_s` a size
(`"24GB"`, `"1.5GB/s"`, or bytes). Whatever does not fit is a `ConfigError`: one sentence with the file and the key.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import types
from collections.abc import Iterable, Mapping
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

from pilotlight.core.errors import ConfigError
from pilotlight.quantities import duration_s, size_bytes

SIZES = ("bytes", "bytes_per_s", "per_reader")
POSITIVE = frozenset({"speed", "tick_s", "step_s", "heard_s"})
"""Fields by which something is divided, or with which time goes on; rates are the others."""
NAMES = {"name", "variant_id"}
"""Fields that the name of a table fills, where tables stand under names: `[kinds.a10]`."""


def table_of(kind: type[Any], value: object, where: str, **fixed: object) -> Any:
    """A dataclass from a table. where: what messages call it, with the file; fixed: fields that are no keys of it."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a table, not {_shown(value)}")
    table = cast("Mapping[str, object]", value)
    hints = get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.name not in fixed and _writable(hints[f.name])}
    for key in table:
        if key not in fields:
            raise ConfigError(f"{where} has no key {key!r}: {_known(key, list(fields))}")
    given = {key: _value(hints[key], item, key, f"{key} of {where}") for key, item in table.items()}
    missing = [name for name, f in fields.items() if name not in given and _needed(f)]
    if missing:
        raise ConfigError(f"{where} lacks {' and '.join(missing)}")
    return kind(**given, **fixed)


def _needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _writable(hint: Any) -> bool:
    """Whether a value of this type can be written in a file: keys of TOML tables are words."""
    return not (get_origin(hint) is dict and get_args(hint)[0] is not str)


def _known(key: str, names: list[str]) -> str:
    near = difflib.get_close_matches(key, names, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}known are {', '.join(sorted(names))}"


def _value(hint: Any, value: object, key: str, where: str) -> object:
    origin, args = get_origin(hint), get_args(hint)
    if origin in {Union, types.UnionType}:
        return _value(next(arg for arg in args if arg is not type(None)), value, key, where)
    if dataclasses.is_dataclass(hint):
        return table_of(cast("type[Any]", hint), value, where)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be a table, not {_shown(value)}")
        table = cast("Mapping[str, object]", value)
        return {name: _member(args[1], item, name, f"{name} in {where}") for name, item in table.items()}
    if origin in {list, tuple, frozenset}:
        return _several(hint, value, key, where)
    return _plain(hint, value, key, where)


def _member(hint: Any, item: object, name: str, where: str) -> object:
    """What stands under a name in a table of named things; it may be told its name."""
    if dataclasses.is_dataclass(hint):
        named = [f.name for f in dataclasses.fields(hint) if f.name in NAMES]
        return table_of(cast("type[Any]", hint), item, where, **dict.fromkeys(named, name))
    return _value(hint, item, name, where)


def _several(hint: Any, value: object, key: str, where: str) -> object:
    origin, args = get_origin(hint), get_args(hint)
    if not isinstance(value, list):
        raise ConfigError(f"{where} must be a list, not {_shown(value)}")
    items: list[object] = value  # pyright: ignore[reportUnknownVariableType]
    if origin is tuple and args[-1] is not Ellipsis:
        if len(items) != len(args):
            raise ConfigError(f"{where} must be a list of {len(args)}, not {_shown(items)}")
        return tuple(_value(arg, item, key, where) for arg, item in zip(args, items, strict=True))
    made = [
        _value(args[0], item, key, where if len(items) == 1 else f"{where} (entry {n})")
        for n, item in enumerate(items, 1)
    ]
    return cast("Any", origin)(made)


def _plain(hint: Any, value: object, key: str, where: str) -> object:
    if isinstance(value, str) and hint in {int, float}:
        if key.endswith(SIZES):
            return hint(size_bytes(value.removesuffix("/s") if _is_rate(key) else value, where))
        if hint is float and not key.endswith(SIZES) and key.endswith(("_s", "changes")):
            return duration_s(value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where} must be {_wanted(hint, key)}, not {_shown(value)}")
    if isinstance(value, (int, float)) and key != "changes" and not value >= 0:
        raise ConfigError(f"{where} must not be negative")
    if isinstance(value, (int, float)) and (_is_rate(key) or key in POSITIVE) and not 0 < value < math.inf:
        raise ConfigError(f"{where} must be more than 0, and finite")
    return value


def _is_rate(key: str) -> bool:
    return key.endswith(SIZES[1:])


def _wanted(hint: Any, key: str) -> str:
    if key.endswith(SIZES):
        return "a size such as 24GB" + ("/s" if _is_rate(key) else "")
    if key.endswith("_s"):
        return "a time such as 90s or 10m"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}.get(hint, str(hint))


def _shown(value: object) -> str:
    return (
        "a table"
        if isinstance(value, Mapping)
        else f"a list of {len(cast('list[object]', value))}"
        if isinstance(value, list)
        else repr(value)
    )


# --- and back


def text_of(thing: Any, comments: Mapping[str, str], without: Iterable[str] = ()) -> str:
    """A dataclass as a TOML file that `table_of` reads as an equal one; values that are defaults are left out."""
    return "\n".join(_lines(thing, (), comments, without)).lstrip("\n") + "\n"


def _lines(thing: Any, path: tuple[str, ...], comments: Mapping[str, str], without: Iterable[str] = ()) -> list[str]:
    lines: list[str] = []
    tables: list[str] = []
    hints = get_type_hints(cast("Any", type(thing)))
    for f in dataclasses.fields(thing):
        value: Any = getattr(thing, f.name)
        here = (*path, f.name)
        remark = comments.get(".".join(here), "")
        if f.name in without or not _writable(hints[f.name]) or (value == _default(f) and not remark):
            continue
        if dataclasses.is_dataclass(value):
            tables += ["", f"[{_dotted(here)}]", *_lines(value, here, comments)]
        elif _holds_tables(hints[f.name]) and isinstance(value, dict):
            for name, item in cast("dict[str, Any]", value).items():
                inner = (*here, name)
                tables += ["", f"[{_dotted(inner)}]", *_lines(item, inner, comments, NAMES)]
        elif _holds_tables(hints[f.name]):
            for n, item in enumerate(value, 1):
                tables += ["", f"[[{_dotted(here)}]]", *_lines(item, (*here, str(n)), comments)]
        else:
            lines.append(f"{f.name} = {_written(value, f.name)}" + (f"  # {remark}" if remark else ""))
    return lines + tables


def _holds_tables(hint: Any) -> bool:
    return get_origin(hint) in {dict, tuple} and any(map(dataclasses.is_dataclass, get_args(hint)))


def _default(field: dataclasses.Field[Any]) -> object:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _dotted(path: tuple[str, ...]) -> str:
    return ".".join(part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else json.dumps(part) for part in path)


def _written(value: Any, key: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value).items()
        return "{" + ", ".join(f"{_dotted((name,))} = {_written(item, name)}" for name, item in items) + "}"
    if isinstance(value, tuple | frozenset):
        listed = cast("list[Any]", sorted(value) if isinstance(value, frozenset) else list(value))  # pyright: ignore[reportUnknownArgumentType]
        return "[" + ", ".join(_written(item, key) for item in listed) + "]"
    if key.endswith(SIZES):
        return _size(value, key)
    if key.endswith("_s") and value >= 60 and value == int(value):
        for unit, seconds in (("d", 86_400), ("h", 3600), ("m", 60)):
            if value % seconds == 0:
                return f'"{value // seconds:.0f}{unit}"'
    return f"{value:_}" if isinstance(value, int) else repr(value)


def _size(value: float, key: str) -> str:
    """`"3.4GB"`, where that is exact, else bytes."""
    end = "/s" if _is_rate(key) else ""
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        text = f"{value / factor:.3f}".rstrip("0").rstrip(".")
        if value >= factor and int(float(text) * factor) == value:
            return f'"{text}{unit}{end}"'
    return repr(value)
