"""Small task folders on real text, with labels that follow from it."""

import json
from pathlib import Path

import numpy as np

from conftest import embedded_documents

PARTS = {"train": (0, 160), "validation": (160, 200), "test": (200, 240)}


def sentences() -> list[str]:
    """First sentences of the embedded corpus."""
    return [text.split(". ")[0][:120] + "." for text in embedded_documents(240)]


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make(folder: Path, kind: str) -> Path:
    """A folder as users have them: train, validation and test as JSON lines, and info.json."""
    folder.mkdir(parents=True, exist_ok=True)
    texts, info = sentences(), {"kind": kind}
    if kind == "classification":
        rows = [{"text": ("Good! " if i % 2 else "Bad? ") + text, "label": i % 2} for i, text in enumerate(texts)]
        info |= {"labels": ["bad", "good"], "metric": "accuracy"}
    elif kind == "pair classification":
        # Both texts have to be read: either alone gives an F1 of 0.67.
        good = (
            [("Bad? ", "Good! ")[i % 2] for i in range(len(texts))],
            [("Bad? ", "Good! ")[i // 2 % 2] for i in range(len(texts))],
        )
        rows = [
            {"text_a": one + text, "text_b": two + texts[i - 7], "label": "good" if one == two == "Good! " else "bad"}
            for i, (text, one, two) in enumerate(zip(texts, *good))
        ]
        info |= {"labels": ["bad", "good"], "metric": "f1"}
    elif kind == "regression":
        rows = [{"text": "yes! " * (i % 5) + text[:30], "label": i % 5 - 1.5} for i, text in enumerate(texts)]
        info |= {"metric": "spearman"}
    elif kind == "tagging":
        rows = []
        for text in texts:
            words = text.split()
            names = ["O" if len(word) > 3 else "B-N" for word in words]  # spans of short words
            names = ["I-N" if i and tag == "B-N" and names[i - 1] != "O" else tag for i, tag in enumerate(names)]
            rows.append({"tokens": words, "tags": names})
        info |= {"labels": ["O", "B-N", "I-N"], "metric": "span_f1"}
    else:
        rng, rows = np.random.default_rng(0), []
        for index, text in enumerate(texts):
            words = [word.strip(".,()") for word in text.split()]
            # The measures ignore articles.
            words = [word for word in words if word.lower() not in ("", "a", "an", "the")][:3]
            word = words[rng.integers(len(words))]
            answers = [{"text": word, "answer_start": text.index(word)}] if index % 3 else []
            question = f"Which word is {word}?" if answers else "Which word is absent?"
            rows.append({"id": f"q{index}", "question": question, "context": text, "answers": answers})
        info |= {"kind": "question_answering", "metric": "f1"}
    (folder / "info.json").write_text(json.dumps(info))
    for name, (begin, end) in PARTS.items():
        write_lines(folder / f"{name}.jsonl", rows[begin:end])
    return folder
