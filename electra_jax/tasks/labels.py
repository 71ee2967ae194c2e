"""Labels as data give them: by name, or by their index in the list of names."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from electra_jax.errors import UserError

_OF_SPANS = ("B-", "I-", "E-", "S-")


class Labels(NamedTuple):
    """How a task's data give labels."""

    names: tuple[str, ...]
    are_indices: bool

    def name(self, label: Any, where: str) -> str:
        """The name of a label; raises `UserError` where it has none."""
        text = str(label)
        if not self.are_indices or not _is_integer(text):
            index(self.names, text, where)
            return text
        if not 0 <= int(text) < len(self.names):
            raise UserError(f"{where}: label {text} is not an index of the {len(self.names)} labels")
        return self.names[int(text)]


def given_as(names: Sequence[str], labels: Iterable[Any]) -> Labels:
    """How `labels`, all that training has, are given where their `names` are known: never some one way, some the other."""

    def is_index(text: str) -> bool:
        return text.isdecimal() and int(text) < len(names)

    found = {str(label) for label in labels}
    are_names = found & {*names}
    # Numbers may be both; then all have to be indices for one to be.
    are_indices = any(map(is_index, found - are_names)) and (not are_names or all(map(is_index, found)))
    return Labels(tuple(names), are_indices)


def index(names: Sequence[str], name: str, where: str) -> int:
    """The place of a name; raises `UserError` for one that is not there."""
    try:
        return _indices(tuple(names))[name]
    except KeyError:
        some = ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")
        raise UserError(f"{where}: label {name!r} is not one of the {len(names)} labels: {some}") from None


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Different names, sorted: numbers by size, then words."""
    return tuple(sorted(set(names), key=lambda name: (0, int(name), "") if _is_integer(name) else (1, 0, name)))


def spell_spans(names: Iterable[str]) -> bool:
    """Whether tags stand for spans: BIO, IO, BIOES."""
    return any(name.startswith(_OF_SPANS) for name in names)


def bioes(names: Sequence[str]) -> tuple[str, ...]:
    """Tags in BIO or BIOES with every prefix that a span may be spelt by; raises `UserError` for one that is of no span."""
    for name in names:
        if name != "O" and not name.startswith(_OF_SPANS):
            raise UserError(
                f"config.task.tags=bioes cannot work: tag {name!r} is neither O nor of a span (B-NAME, I-NAME)"
            )
    spans = sorted({name[2:] for name in names if name != "O"})
    return (*(("O",) if "O" in names else ()), *(f"{prefix}-{name}" for name in spans for prefix in "BIES"))


@functools.cache
def _indices(names: tuple[str, ...]) -> dict[str, int]:
    return {name: place for place, name in enumerate(names)}


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
