"""Labels as data give them: by name, or by their index in the list of names."""

from collections.abc import Iterable, Sequence
from typing import Any

from electra_jax.errors import UserError
from electra_jax.tasks.metrics import to_bioes

_OF_SPANS = ("B-", "I-", "E-", "S-")
_OTHERS = ("L-", "U-", "M-")  # of BILOU and BMES


class Labels:
    """How a task's data give labels, and what is predicted of them.

    Attributes:
      predicted: the names that a model tells apart, in the order of its outputs.
    """

    def __init__(self, names: Sequence[str], are_indices: bool = False, as_bioes: bool = False):
        """`are_indices`: the data give places in `names`. `as_bioes`: tags in BIO are predicted as BIOES.

        Raises:
          UserError: for a name that is not text, or, with `as_bioes`, not the tag of a span.
        """
        for name in names:
            if not is_text(name):
                raise UserError(f"label {name!a} holds half of a character, which is no text")
        self._names, self._are_indices, self._as_bioes = tuple(names), are_indices, as_bioes
        self.predicted = _bioes(names) if as_bioes else self._names
        self._known = {*self._names}
        self._places = {name: place for place, name in enumerate(self.predicted)}

    def index(self, label: Any, where: str) -> int:
        """The place of a label among those predicted; raises `UserError` for one that is not known."""
        return self._places[self._name(label, where)]

    def of_words(self, tags: Iterable[Any], where: str) -> tuple[int, ...]:
        """The places of the tags of a sentence, likewise."""
        names = [self._name(tag, where) for tag in tags]
        return tuple(self._places[name] for name in (to_bioes(names) if self._as_bioes else names))

    def _name(self, label: Any, where: str) -> str:
        text = str(label)
        if self._are_indices and _is_integer(text):
            if not 0 <= int(text) < len(self._names):
                raise UserError(f"{where}: label {text} is not an index of the {len(self._names)} labels")
            return self._names[int(text)]
        if text not in self._known:
            some = ", ".join(self._names[:8]) + (" ..." if len(self._names) > 8 else "")
            raise UserError(f"{where}: label {text!r} is not one of the {len(self._names)} labels: {some}")
        if self._are_indices:
            raise UserError(f"{where}: label {text!r} is given by name, in training by index")
        return text


def are_indices(names: Sequence[str], labels: Iterable[Any]) -> bool:
    """Whether `labels`, all that training has, are places in the list of their `names`, and not names."""

    def is_index(text: str) -> bool:
        return text.isdecimal() and int(text) < len(names)

    found = {str(label) for label in labels}
    named = found & {*names}
    # A number may be both a name and an index; if any label is a name, all must be valid indices to count as such.
    return any(map(is_index, found - named)) and (not named or all(map(is_index, found)))


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Different names, sorted: numbers by size, then words."""
    return tuple(sorted(set(names), key=lambda name: (0, int(name), name) if _is_integer(name) else (1, 0, name)))


def are_of_spans(names: Iterable[str]) -> bool:
    """Whether tags stand for spans: BIO, IO, BIOES, BMES, BILOU; also with nothing but these letters, as for words of Chinese."""
    names = {*names}
    return any(name.startswith(_OF_SPANS) for name in names) or ({"B"} < names <= {*"BIOESMLU"})


def is_text(text: str) -> bool:
    """Whether a string can be written down: JSON may hold halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _bioes(names: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        if name != "O" and not name.startswith((*_OF_SPANS, *_OTHERS)):
            raise UserError(
                f"config.task.tags=bioes cannot work: tag {name!r} is neither O nor of a span (B-NAME, I-NAME)"
            )
    spans = sorted({name[2:] for name in names if name != "O"})
    return (*(("O",) if "O" in names else ()), *(f"{prefix}-{name}" for name in spans for prefix in "BIES"))


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
