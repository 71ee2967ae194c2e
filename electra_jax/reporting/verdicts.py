"""`verdicts.jsonl`: some held-out text with the generator's replacements and what the discriminator says of each token."""

import html
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from electra_jax import storage
from electra_jax.reporting.writers import rows

_TOKENS = 128  # of a sequence: a look, not an archive


class Token(NamedTuple):
    """One token of a sequence."""

    text: str
    replacement: str | None  # what the discriminator was shown instead
    probability: float  # that it was replaced, as the discriminator has it


def read_tokens(verdicts: Any, vocabulary: Sequence[str], pad: int) -> list[list[Token]]:
    """The sequences of `objectives.terms.Verdicts`, without padding; its arrays are `[B, L]`."""
    found = []
    for ids, shown, scores in zip(*verdicts, strict=True):
        length = min(_TOKENS, int((ids != pad).sum()))
        probabilities = 1 / (1 + np.exp(-scores[:length].astype(np.float64)))
        found.append(
            [
                Token(vocabulary[a], vocabulary[b] if a != b else None, round(float(p), 3))
                for a, b, p in zip(ids[:length], shown[:length], probabilities, strict=True)
            ]
        )
    return [tokens for tokens in found if tokens]


def write(path: epath.Path, step: int, sequences: Sequence[Sequence[Token]]) -> None:
    """Adds the sequences of `step`, and drops what an interrupted run wrote from that step on."""
    try:
        kept = [row for row in rows(path) if row["step"] < step]
        new = {"step": step, "sequences": sequences}
        storage.write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in [*kept, new]))
    except Exception as error:  # each kind of storage has its own
        if not storage.is_remote(path):
            raise
        # A run is worth more than its reports.
        print(f"WARNING: {path} could not be written ({error}); the verdicts of step {step} are left out", flush=True)


def read(path: epath.Path) -> dict[int, list[list[Token]]]:
    """The sequences by step, in ascending order."""
    return {row["step"]: [[Token(*token) for token in tokens] for tokens in row["sequences"]] for row in rows(path)}


def to_html(sequences: Sequence[Sequence[Token]]) -> list[str]:
    """A paragraph a sequence: the redder a token, the surer the discriminator is that it was replaced.

    Replaced tokens are framed, each followed by the original, struck through. Styles are inline, to work in a page or a notebook.
    """
    # SentencePiece marks tokens that begin a word, WordPiece those that continue one.
    is_sentencepiece = any(token.text.startswith("▁") for tokens in sequences for token in tokens)
    return [f'<p style="line-height: 2">{_words(tokens, is_sentencepiece)}</p>' for tokens in sequences]


def _words(tokens: Sequence[Token], is_sentencepiece: bool) -> str:
    parts, was_replaced = [], False
    for token in tokens:
        text = token.replacement or token.text
        begins = text.startswith("▁") or not (is_sentencepiece or text.startswith("##"))
        # A space sets a struck-through original apart from what follows, even in the middle of a word.
        parts.append(" " if begins or was_replaced else "")
        was_replaced = token.replacement is not None
        frame = "; outline: 1.5px solid" if was_replaced else ""
        style = f"background: rgba(230, 60, 60, {token.probability * 0.85:.2f}); border-radius: 3px; padding: 2px 1px{frame}"
        parts.append(f'<span style="{style}" title="{token.probability:.0%} replaced">{_bare(text)}</span>')
        if was_replaced:
            parts.append(f'<s style="font-size: 80%; opacity: 0.7; margin: 0 4px">{_bare(token.text)}</s>')
    return "".join(parts)


def _bare(token: str) -> str:
    return (
        html.escape(token.removeprefix("##").removeprefix("▁")) or "&nbsp;"
    )  # SentencePiece has tokens that are only a space
