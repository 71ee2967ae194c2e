"""`verdicts.jsonl`: some held-out text with the generator's replacements and what the discriminator says of each token."""

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
    """Adds those of `step`, and drops what an interrupted run wrote beyond it."""
    kept = [row for row in rows(path) if row["step"] < step]
    text = "".join(
        json.dumps(row, ensure_ascii=False) + "\n" for row in [*kept, {"step": step, "sequences": sequences}]
    )
    storage.write(path, text)


def read(path: epath.Path) -> dict[int, list[list[Token]]]:
    """The sequences by step, in ascending order."""
    return {row["step"]: [[Token(*token) for token in tokens] for tokens in row["sequences"]] for row in rows(path)}
