"""What a tokenizer does to writing other than the Latin, for which BERT's rules were made."""

import collections
import unicodedata
from collections.abc import Iterable

from electra_jax.data.encoding import Tokenizer
from electra_jax.data.tokenizer import WordPiece

# Characters that are looked at, and the share of them from which on it is worth a warning.
_LOOKED_AT, _NOTABLE = 1_000_000, 0.01
# Accents may well be stripped from letters of these, or after them.
_ALPHABETS = ("LATIN ", "GREEK ", "CYRILLIC ", "COMBINING ")


def warnings(tokenizer: Tokenizer, texts: Iterable[str]) -> list[str]:
    """What is lost of the first of `texts`, a line each with the setting that keeps it; nothing is, for most."""
    looked_at, size = [], 0
    for text in texts:
        looked_at.append(text[: _LOOKED_AT - size])
        size += len(looked_at[-1])
        if size >= _LOOKED_AT:
            break
    characters = collections.Counter(character for text in looked_at for character in text if not character.isspace())
    total, found = sum(characters.values()), []
    if not total:
        return found
    strips = isinstance(tokenizer, WordPiece) and (
        tokenizer.lowercase if tokenizer.strip_accents is None else tokenizer.strip_accents
    )
    changed = {character: count for character, count in characters.items() if strips and _is_changed(character)}
    if sum(changed.values()) > _NOTABLE * total:
        commonest = " ".join(sorted(changed, key=lambda character: -changed[character])[:8])
        found.append(
            f"stripping accents deletes or splits {sum(changed.values()) / total:.1%} of the characters, of scripts where they are "
            f"no accents ({commonest}); set tokenizer.lowercase=false, or tokenizer.strip_accents=false"
        )
    unknown = sum(
        end - begin
        for ids, places in tokenizer.encode_with_offsets(looked_at)
        for (begin, end) in places[ids == tokenizer.special.unk].tolist()
    )
    if unknown > _NOTABLE * total:
        found.append(
            f"{unknown / total:.1%} of the characters become [UNK]; of scripts without spaces between words, WordPiece makes a "
            "stretch of more than 100 letters one: tokenizer.kind=unigram has no such limit"
            if isinstance(tokenizer, WordPiece)
            else f"{unknown / total:.1%} of the characters become [UNK]: the vocabulary was made of other text"
        )
    return found


def _is_changed(character: str) -> bool:
    """Whether stripping accents takes away or splits a character that is not of an alphabet with accents."""
    parts = unicodedata.normalize("NFD", character)
    if parts == character and unicodedata.category(character) != "Mn":
        return False
    stripped = "".join(part for part in parts if unicodedata.category(part) != "Mn")
    return stripped != character and not unicodedata.name(parts[0], "").startswith(_ALPHABETS)
