"""Nested values to dataclasses and back: names, types and what a command line spells."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, NoReturn, TypeVar

from electra_jax.errors import UserError

Root = TypeVar("Root")

# What a changed setting means for a run that is resumed.
FREE = "free"  # no effect on the numbers, or only on how they are computed
WARN = "warn"  # allowed, but the run is no longer the one that was started
REFUSE = "refuse"  # the checkpoint or the data would no longer fit


def setting(default: Any, doc: str, on_resume: str) -> Any:
    """A dataclass field with its one-line documentation and its rule for resumed runs."""
    return dataclasses.field(default=default, metadata={"doc": doc, "on_resume": on_resume})


def build(root: type[Root], values: Mapping[str, Any]) -> Root:
    """A configuration of the dataclass `root`, its names and types checked but nothing else; raises `UserError`."""
    return _build(root, values, "")


def override(values: Mapping[str, Any], name: str, text: str, root: type) -> dict[str, Any]:
    """`values` with the dotted field `name` of `root` set to what `text` spells, read by the field's type."""
    section, *path = root, *name.split(".")
    for part in path[:-1]:
        section = _field_type(section, part, name)
        if not dataclasses.is_dataclass(section):
            raise UserError(f"config.{name} does not exist: config.{name.rpartition('.')[0]} is a value, not a section")
    kind = _field_type(section, path[-1], name)
    if dataclasses.is_dataclass(kind):
        raise UserError(f"config.{name}={text} sets a whole section; set one of its fields: {', '.join(_names(kind))}")
    return _set(values, path, _parse(text, kind, name))


def leaves(config: Any) -> dict[str, tuple[Any, dataclasses.Field]]:
    """Every setting by its dotted name: (value, dataclass field)."""
    found = {}

    def visit(section, prefix):
        for field in dataclasses.fields(section):
            value = getattr(section, field.name)
            if dataclasses.is_dataclass(value):
                visit(value, f"{prefix}{field.name}.")
            else:
                found[prefix + field.name] = (value, field)

    visit(config, "")
    return found


def fail(name: str, value: Any, expected: str) -> NoReturn:
    """Refuses the setting `name`; raises `UserError`."""
    raise UserError(f"config.{name}={value!r} cannot work: it must be {expected}")


def _names(section: type) -> list[str]:
    return [field.name for field in dataclasses.fields(section)]


def _field_type(section: type, part: str, full_name: str) -> Any:
    hints = typing.get_type_hints(section)
    if part not in hints:
        close = difflib.get_close_matches(part, hints, n=1)
        prefix = full_name[: full_name.rfind(part)]
        known = f"did you mean config.{prefix}{close[0]}?" if close else f"known here: {', '.join(hints)}"
        raise UserError(f"config.{full_name} does not exist; {known}")
    return hints[part]


def _build(section: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, Mapping):
        raise UserError(
            f"config.{prefix.rstrip('.')}={values!r} is a value; it must be a section with {', '.join(_names(section))}"
        )
    fields = {}
    for name, value in values.items():
        kind = _field_type(section, name, prefix + name)
        is_section = dataclasses.is_dataclass(kind)
        fields[name] = _build(kind, value, f"{prefix}{name}.") if is_section else _typed(value, kind, prefix + name)
    return section(**fields)


def _typed(value: Any, kind: Any, name: str) -> Any:
    """`value` as the annotated type, or a `UserError`; an int is a float, nothing else is converted."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in args:
            fail(name, value, f"one of {', '.join(args)}")
        return value
    if origin is types.UnionType:
        return None if value is None else _typed(value, args[0], name)
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            fail(name, value, f"a tuple of {args[0].__name__}")
        return tuple(_typed(item, args[0], name) for item in value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is float and not math.isfinite(value):
        fail(name, value, "a finite number")
    if type(value) is not kind:
        fail(name, value, f"of type {kind.__name__}, not {type(value).__name__}")
    return value


def _parse(text: str, kind: Any, name: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if text == "None" else _parse(text, args[0], name)
    if origin is tuple:
        is_python = text.lstrip()[:1] in ("(", "[")  # as Python writes it: ('a', 'b')
        parts = [part.strip() for part in (text.strip("()[] ") if is_python else text).split(",")]
        parts = [part.strip("'\"") if is_python else part for part in parts if part]
        return tuple(_parse(part, args[0], name) for part in parts)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            fail(name, text, "true or false")
        return text.lower() == "true"
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            fail(name, text, f"of type {kind.__name__}")
    return text


def _set(values: Mapping[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    result = dict(values)
    result[path[0]] = _set(result.get(path[0], {}), path[1:], value) if len(path) > 1 else value
    return result
