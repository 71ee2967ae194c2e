"""Extractive question answering: a span of the context, or none (SQuAD 1.1 and 2.0).

As BERT does it (Devlin et al., 2019, section 4.2 and 4.3): long contexts are read in overlapping windows, a span's score
is that of its first and last token, and [CLS] stands for no answer.
"""

import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from electra_jax.errors import UserError
from electra_jax.tasks import metrics, squad
from electra_jax.tasks.examples import TaskExample
from electra_jax.tasks.kinds import Feature, Kind, joined

_MEASURES = {"f1": squad.f1, "exact_match": squad.exact_match}
# `null_odds` where no span has any text; JSON has no infinity.
_SURELY_NONE = 1e9


class Candidate(NamedTuple):
    """A span of the context."""

    text: str
    start: int  # characters before it
    score: float  # logit of its first plus that of its last token


class Prediction(NamedTuple):
    """What is said of a question."""

    n_best: tuple[Candidate, ...]  # best first, of different texts
    null_odds: float  # score of no answer, less that of the best


class QuestionAnswering(Kind):
    """Answers to questions; `null_threshold`, chosen on the validation set for the task's metric, decides where there is none."""

    head = "question_answering"
    num_outputs = 2
    probability_axis = 1  # over tokens, for the first of a span and for its last
    cut_by = "max_query_length"
    measures = tuple(_MEASURES)
    has_unanswerable = False
    null_threshold = 0.0

    def fit(self, examples: Sequence[TaskExample]) -> None:
        self.has_unanswerable = any(not example.label for example in examples)

    def settings(self):
        return {"has_unanswerable": self.has_unanswerable, "null_threshold": self.null_threshold}

    def features(self, examples: Sequence[TaskExample]) -> list[Feature]:
        whole = self.tokenizer.encode_batch([example.texts[0] for example in examples])
        questions = [ids[: self.task.max_query_length] for ids in whole]
        self.num_cut = sum(len(ids) > self.task.max_query_length for ids in whole)
        # Each context once: in SQuAD, about five questions share one.
        texts = list(dict.fromkeys(example.texts[1] for example in examples))
        contexts = dict(zip(texts, self.tokenizer.encode_with_offsets(texts), strict=True))
        made = []
        for index, (example, question) in enumerate(zip(examples, questions, strict=True)):
            ids, offsets = contexts[example.texts[1]]
            if not len(ids):
                raise UserError(f"{example.where}: the context is empty: no token is in {example.texts[1][:40]!a}")
            room = self.task.max_length - len(question) - 3
            windows = [(0, min(room, len(ids)))]
            while windows[-1][1] < len(ids):
                start = windows[-1][0] + self.task.doc_stride
                windows.append((start, min(start + room, len(ids))))
            # The most that any window shows around each token.
            most = np.full(len(ids), -np.inf)
            for start, end in windows:
                most[start:end] = np.maximum(most[start:end], _margins(end - start))
            for start, end in windows:
                best = _margins(end - start) == most[start:end]
                made.append(self._window(index, example, question, ids, offsets, (start, end), best))
        return made

    def _window(self, index, example, question, ids, offsets, window, is_best) -> Feature:
        start, end = window
        tokens, types = joined([question, ids[start:end]], self.tokenizer)
        shift = len(question) + 2 - start
        # Characters of each token, and whether it is best seen here.
        places = np.full((len(tokens), 3), -1, np.int32)
        places[start + shift : end + shift, :2] = offsets[start:end]
        places[start + shift : end + shift, 2] = is_best
        target = np.zeros(2, np.int32)  # [CLS]: no answer, or none within this window
        if example.label:
            answer = example.label[0]
            first, last = answer.start, answer.start + len(answer.text)
            inside = np.flatnonzero((offsets[:, 1] > first) & (offsets[:, 0] < last))
            if len(inside) and start <= inside[0] and inside[-1] < end:
                target = np.asarray([inside[0] + shift, inside[-1] + shift], np.int32)
        return Feature(index, tokens, types, target, places)

    def average(self, outputs):
        # Windows of a context are compared with each other, so each keeps the size of its logits.
        size = special.logsumexp(np.asarray(outputs, np.float64), axis=self.probability_axis, keepdims=True).mean(0)
        return super().average(outputs) + size

    def predictions(self, examples, features, outputs):
        found: list[list[tuple[Candidate, ...]]] = [[] for _ in examples]
        null: list[float] = [np.inf] * len(examples)
        for feature, output in zip(features, outputs, strict=True):
            example, output = examples[feature.example], np.asarray(output, np.float64)
            found[feature.example].append(self._candidates(example, feature, output))
            null[feature.example] = min(null[feature.example], float(output[0].sum()))
        made = []
        for windows, none in zip(found, null):
            ranked = sorted((one for window in windows for one in window), key=lambda one: -one.score)
            different = {one.text: one for one in reversed(ranked)}  # the best of each text
            best = tuple(sorted(different.values(), key=lambda one: -one.score)[: self.task.n_best])
            made.append(Prediction(best, none - best[0].score if best else _SURELY_NONE))
        return made

    def _candidates(self, example: TaskExample, feature: Feature, output: np.ndarray) -> tuple[Candidate, ...]:
        places, context = feature.tokens, example.texts[1]
        count = self.task.n_best
        starts = np.flatnonzero(places[:, 2] == 1)
        starts = starts[np.argsort(-output[starts, 0], kind="stable")[:count]]
        ends = np.flatnonzero(places[:, 0] >= 0)
        ends = ends[np.argsort(-output[ends, 1], kind="stable")[:count]]
        found = []
        for start in starts:
            for end in ends[(ends >= start) & (ends < start + self.task.max_answer_length)]:
                last = _with_marks(context, int(places[end, 1]))
                text = context[int(places[start, 0]) : last]
                # SentencePiece's pieces have the space before a word in them.
                begin, text = last - len(text.lstrip()), text.strip()
                if text:
                    found.append(Candidate(text, begin, float(output[start, 0] + output[end, 1])))
        return tuple(sorted(found, key=lambda one: -one.score)[:count])

    def answer(self, prediction: Prediction) -> str:
        """The text of the answer, empty for none."""
        if self.has_unanswerable and prediction.null_odds > self.null_threshold:
            return ""
        return prediction.n_best[0].text if prediction.n_best else ""

    def tune(self, examples, predictions):
        if not self.has_unanswerable:
            return
        self.null_threshold = _best(_MEASURES[self.task.metric], examples, predictions)[0]

    def figures(self, examples, predictions):
        says_none = np.asarray([not self.answer(prediction) for prediction in predictions])
        has = np.asarray([bool(example.label) for example in examples])
        found = {"no_answer_accuracy": float((says_none != has).mean())} if self.has_unanswerable else {}
        for name, measure in _MEASURES.items():
            _, best, if_answered, if_not = _best(measure, examples, predictions)
            counts = np.where(says_none, if_not, if_answered)
            found[name] = float(counts.mean())
            if self.has_unanswerable:
                # As in the official script: for each kind of question, and at the threshold that is best on these examples.
                kinds = {"answerable": has, "unanswerable": ~has}
                found |= {f"{kind}_{name}": float(counts[those].mean()) for kind, those in kinds.items() if those.any()}
                found[f"best_{name}"] = best
        return found

    def is_collapsed(self, examples, predictions):
        if len(examples) < metrics.FEW or len({example.label for example in examples}) == 1:
            return False
        answers = {self.answer(prediction) for prediction in predictions}
        places = {prediction.n_best[0].start if self.answer(prediction) else None for prediction in predictions}
        expected = {example.label[0].start if example.label else None for example in examples}
        return len(answers) == 1 or len(places) == 1 < len(expected)

    def shown(self, example, prediction):
        answer = self.answer(prediction)
        start = prediction.n_best[0].start if answer else None
        best = [{"text": one.text, "start": one.start, "score": round(one.score, 6)} for one in prediction.n_best[:5]]
        return {"id": example.id, "answer": answer, "start": start, "null_odds": prediction.null_odds, "n_best": best}


def _best(
    measure: Callable[[Sequence[str], str], float], examples: Sequence[TaskExample], predictions: Sequence[Prediction]
) -> tuple[float, float, np.ndarray, np.ndarray]:
    """The no-answer threshold with the greatest mean of a measure, that mean, and each question's score if answered and if not."""
    given = [[answer.text for answer in example.label] for example in examples]
    texts = [prediction.n_best[0].text if prediction.n_best else "" for prediction in predictions]
    odds = np.asarray([prediction.null_odds for prediction in predictions])
    if_answered = np.asarray([measure(answers, text) for answers, text in zip(given, texts)])
    if_not = np.asarray([measure(answers, "") for answers in given])
    threshold = squad.best_threshold(odds, if_answered, if_not)
    return threshold, float(np.where(odds > threshold, if_not, if_answered).mean()), if_answered, if_not


def _with_marks(text: str, end: int) -> int:
    """`end`, past the marks of the character before it: accents and vowel signs, which some tokenizers drop or keep apart."""
    while end < len(text) and unicodedata.category(text[end]).startswith("M"):
        end += 1
    return end


def _margins(size: int) -> np.ndarray:
    """How much a window of `size` tokens shows around each: its smaller side, with ties broken by window size, as in BERT."""
    token = np.arange(size)
    return np.minimum(token, size - 1 - token) + 0.01 * size
