"""Sentences of words and their tags in columns, a word a line: CoNLL's files, and CoNLL-U's."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from electra_jax.errors import UserError

# Fields of CoNLL-U (universaldependencies.org/format.html).
_CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")


class Sentence(NamedTuple):
    """What stands between two empty lines."""

    where: str  # file and line of its first word
    words: list[str]
    tags: list[str | None] | None  # a tag a word, or none at all


def sentences(lines: Iterable[str], name: str, kind: str, column: str) -> Iterator[Sentence]:
    """The sentences of an open file.

    Args:
      lines: of the file.
      name: of the file, for messages.
      kind: conll or conllu.
      column: that of the tag: a name of CoNLL-U or a number; `label` means the last one, in CoNLL-U upos.

    Raises:
      UserError: for a line or a file that is not of this form.
    """
    found = list(_tagged(lines, name, kind, column))
    if kind == "conll" and len(found) > 1:
        _check_words(found, name)
    # A word may have an empty tag (_); a file in which all words do has sentences that are yet to be tagged.
    is_bare = kind == "conllu" and all(tag == "_" for one in found for tag in one.tags)
    for one in found:
        yield one._replace(tags=None) if is_bare or None in one.tags else one


def _check_words(found: list[Sentence], name: str) -> None:
    """Refuses a file of columns whose first one holds no words; raises `UserError`."""
    first = found[0]
    if all(one.words[0].startswith("#") for one in found):
        raise UserError(
            f"{first.where}: every sentence of {name} begins with {first.words[0]!r}: take out the comments"
        )
    if all(word == str(place) for one in found for place, word in enumerate(one.words, 1)):
        raise UserError(f"{first.where}: the first column of {name} must be the words, not their numbers")


def _tagged(lines: Iterable[str], name: str, kind: str, column: str) -> Iterator[Sentence]:
    """All sentences, with None as the tag of a word that stands alone on its line."""
    words: list[str] = []
    tags: list[str | None] = []
    begin, width = 1, 0
    for line_number, line in enumerate([*lines, ""], 1):
        line = line.rstrip("\r\n")
        is_blank = not line.strip(" \t")  # other white space may be a word, or in one
        if not is_blank and not words:
            begin = line_number
        if is_blank:
            if words:
                yield Sentence(f"{name}:{begin}", words, tags)
            words, tags = [], []
            continue
        if line.startswith("-DOCSTART-") or (kind == "conllu" and line.startswith("#")):
            continue
        if kind == "conllu":
            cells = line.split("\t")
            if len(cells) != len(_CONLLU):
                raise UserError(f"{name}:{line_number} has {len(cells)} columns; CoNLL-U has {len(_CONLLU)}")
            if not cells[0].isdecimal():  # a contraction of words that follow, or an empty node
                continue
            column_name = "upos" if column == "label" else column
            if column_name not in _CONLLU:
                raise UserError(f"config.task.label={column!r}: the columns of CoNLL-U are {', '.join(_CONLLU)}")
            word, tag = cells[1], cells[_CONLLU.index(column_name)]
        else:
            cells = _cells(line)
            if not cells[0]:
                raise UserError(f"{name}:{line_number}: {line[:60]!r} has no word in its first column")
            if column != "label" and not column.lstrip("-").isdecimal():
                raise UserError(f"config.task.label={column!r}: of a file of columns it must be a number, -1 the last")
            place = -1 if column == "label" else int(column)
            is_bare = len(cells) == 1  # a word alone, to be tagged
            if tags and tags[0] is None and not is_bare:
                raise UserError(
                    f"{name}:{line_number}: {line[:60]!r} has a tag, the words before it in the sentence have none"
                )
            if is_bare and tags and tags[0] is not None:
                raise UserError(
                    f"{name}:{line_number}: {line[:60]!r} has no tag, the words before it in the sentence have them"
                )
            if words and len(cells) != width:
                raise UserError(f"{name}:{line_number} has {len(cells)} columns, the line before {width}")
            if not is_bare and not -len(cells) <= place < len(cells):
                raise UserError(f"{name}:{line_number}: {line[:60]!r} has no column {place} for the tag")
            word, tag, width = cells[0], None if is_bare else cells[place], len(cells)
        words.append(word)
        tags.append(tag)


def _cells(line: str) -> list[str]:
    """The cells of a line: between tabs, where some may be empty (a tab at the end begins none), or else between spaces."""
    if "\t" in line:
        return [cell.strip(" ") for cell in line.removesuffix("\t").split("\t")]
    return [part for part in line.split(" ") if part]
