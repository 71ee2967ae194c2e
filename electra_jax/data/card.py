"""The data card: what a data set holds, as JSON and as a page, to be read before one trains on it."""

import collections
import html
import json
from typing import Any

import numpy as np

from electra_jax import storage
from electra_jax.data.dataset import TRAIN, VALIDATION, DataSet
from electra_jax.data.pipeline import Records
from electra_jax.data.tokenizer import Tokenizer

_EXAMPLES = 5
# Sequences whose language is looked at.
_LOOKED_AT = 500


def write(made: DataSet, tokenizer: Tokenizer) -> None:
    """Writes `data_card.json` and `data_card.html` into the folder of a data set."""
    figures = data_card(made, tokenizer)
    storage.write(made.directory / "data_card.json", json.dumps(figures, indent=1, ensure_ascii=False))
    storage.write(made.directory / "data_card.html", _page(figures))


def data_card(made: DataSet, tokenizer: Tokenizer) -> dict[str, Any]:
    """The figures by name; of both splits together where no split is named.

    `fertility` is tokens per space-separated word; `documents_by_tokens` counts documents of up to that many tokens.
    """
    metadata = made.metadata
    splits = {split: metadata[split] for split in (TRAIN, VALIDATION) if split in metadata}

    def total(name: str) -> int:
        return sum(split[name] for split in splits.values())

    lengths = np.sum([split["lengths"] for split in splits.values()], 0)
    texts = _texts(made, tokenizer)
    return {
        "name": made.directory.parent.name,
        "sources": [element[0] for element in metadata["elements"]],
        "files": len(metadata["files"]),
        "file_bytes": sum(file["bytes"] for file in metadata["files"]),
        "documents": total("documents"),
        "text_bytes": total("bytes"),
        "words": total("words"),
        "tokens": total("source_tokens"),
        "fertility": total("source_tokens") / max(1, total("words")),
        "bytes_per_token": total("bytes") / max(1, total("source_tokens")),
        "unknown_share": total("unknown_tokens") / max(1, total("source_tokens")),
        "max_seq_length": metadata["max_seq_length"],
        "packing": metadata["packing"],
        "sequences": {split: counts["sequences"] for split, counts in splits.items()},
        "padding_share": total("padding") / max(1, total("sequences") * metadata["max_seq_length"]),
        "dropped_tokens": total("dropped_tokens"),
        "duplicates": metadata["survey"]["duplicates"],
        "broken_documents": metadata["survey"]["broken"],
        "empty_documents": metadata["survey"]["empty"],
        "passed_over": metadata["survey"]["named"],
        "documents_by_tokens": {str(2**i): int(count) for i, count in enumerate(lengths) if count},
        "vocab_size": metadata["vocab_size"],
        "languages": _languages(texts),
        "examples": texts[:_EXAMPLES],
    }


def _texts(made: DataSet, tokenizer: Tokenizer) -> list[str]:
    """Training sequences, drawn at random, as the tokenizer decodes them; each document begins a new line."""
    records = Records(made, TRAIN)
    count = min(_LOOKED_AT, len(records))
    numbers = np.random.default_rng(0).choice(len(records), count, replace=False)
    texts = []
    for ids in records.read(numbers):
        documents = np.split(ids, np.flatnonzero(ids == tokenizer.special.cls)[1:])
        texts.append("\n".join(tokenizer.decode(document) for document in documents))
    return texts


def _languages(texts: list[str]) -> dict[str, float] | None:
    """Shares of the languages of `texts`, the commonest ten; None where py3langid is not installed."""
    try:
        import py3langid
    except ImportError:
        return None
    counts = collections.Counter(py3langid.classify(text)[0] for text in texts)
    return {language: count / len(texts) for language, count in counts.most_common(10)}


def _page(figures: dict[str, Any]) -> str:
    plain = {name: value for name, value in figures.items() if isinstance(value, (int, float, str)) and name != "name"}
    plain |= {f"sequences, {split}": count for split, count in figures["sequences"].items()}
    rows = "".join(
        f"<tr><th>{name.replace('_', ' ')}</th><td>{html.escape(_text(name, value))}</td></tr>"
        for name, value in plain.items()
    )
    languages = figures["languages"]
    known = {name: f"{share:.1%}" for name, share in (languages or {}).items()}
    return _PAGE.format(
        name=html.escape(figures["name"]),
        sources=html.escape(", ".join(figures["sources"])),
        rows=rows,
        lengths=_bars(figures["documents_by_tokens"]),
        languages=_bars(languages, known)
        if languages
        else "<p>Not looked at: pip install 'electra_jax[languages]'.</p>",
        passed_over="".join(f"<li>{html.escape(line)}</li>" for line in figures["passed_over"]) or "<li>none</li>",
        examples="".join(f"<blockquote>{html.escape(text)}</blockquote>" for text in figures["examples"]),
    )


def _text(name: str, value: Any) -> str:
    if name.endswith("_share"):
        return f"{value:.2%}"
    return f"{value:,.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value


def _bars(values: dict[str, float], shown: dict[str, str] | None = None) -> str:
    largest = max(values.values(), default=0) or 1
    rows = (
        f'<tr><th>{html.escape(name)}</th><td class="bar"><i style="width:{100 * value / largest:.1f}%"></i></td>'
        f"<td>{shown[name] if shown else f'{value:,}'}</td></tr>"
        for name, value in values.items()
    )
    return f"<table>{''.join(rows)}</table>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}</title><style>
:root {{ color-scheme: light dark; --line: #8884; --bar: #3b7dd8; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }}
table {{ border-collapse: collapse; width: 100%; }}
th {{ text-align: left; font-weight: normal; opacity: .75; white-space: nowrap; padding-right: 1rem; }}
td, th {{ border-bottom: 1px solid var(--line); padding: .2rem .4rem .2rem 0; }}
td:last-child {{ white-space: nowrap; }}
td.bar {{ width: 70%; }} td.bar i {{ display: block; height: .8rem; background: var(--bar); border-radius: 2px; min-width: 1px; }}
blockquote {{ margin: .8rem 0; padding: .2rem .8rem; border-left: 3px solid var(--bar); white-space: pre-line; }}
</style></head><body>
<h1>{name}</h1><p>From {sources}.</p>
<table>{rows}</table>
<h2>Documents by length</h2><p>The number of documents of up to this many tokens, and more than half as many.</p>{lengths}
<h2>Languages</h2>{languages}
<h2>Passed over</h2><ul>{passed_over}</ul>
<h2>Five sequences</h2><p>As the tokenizer reads them back; a new document begins on a new line.</p>{examples}
</body></html>
"""
