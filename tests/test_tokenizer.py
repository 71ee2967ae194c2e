"""Vocabularies: trained the same every time, in any language, never confused by text."""

import json
import re
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import sentencepiece
from tokenizers import BertWordPieceTokenizer

from conftest import embedded_documents, process_env
from electra_jax.config import TokenizerConfig
from electra_jax.data import scripts
from electra_jax.data import tokenizer as tokenizer_lib
from electra_jax.errors import UserError

KINDS = ("wordpiece", "unigram", "bpe")

FRENCH = [
    "Longtemps, je me suis couché de bonne heure. Parfois, à peine ma bougie éteinte, mes yeux se fermaient si vite "
    "que je n'avais pas le temps de me dire : « Je m'endors. »",
    "Et, une demi-heure après, la pensée qu'il était temps de chercher le sommeil m'éveillait ; je voulais poser le "
    "volume que je croyais avoir encore dans les mains et souffler ma lumière ; je n'avais pas cessé en dormant de "
    "faire des réflexions sur ce que je venais de lire, mais ces réflexions avaient pris un tour un peu particulier.",
    "Où êtes-vous allés, garçons ? Noël à l'œuvre, une île naïve, l'été dernier, où le cœur bat.",
]
CHINESE = [
    "床前明月光，疑是地上霜。舉頭望明月，低頭思故鄉。",
    "白日依山盡，黃河入海流。欲窮千里目，更上一層樓。",
    "春眠不覺曉，處處聞啼鳥。夜來風雨聲，花落知多少。",
    "千山鳥飛絕，萬徑人蹤滅。孤舟蓑笠翁，獨釣寒江雪。",
]


@pytest.fixture(scope="module")
def english() -> list[str]:
    return embedded_documents(300)


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens(kind, english):
    made = tokenizer_lib.train(TokenizerConfig(kind=kind, vocab_size=600), english)
    assert made.vocab_size == 600
    assert made.special.pad == 0
    assert len(set(made.special)) == 5
    assert made.tokens(made.special) == list(tokenizer_lib.SPECIAL_TOKENS)
    # Text that spells special tokens is text.
    (ids,) = made.encode_batch(["a [MASK] b [CLS] c [SEP] d [PAD]"])
    assert not set(ids.tolist()) & {made.special.pad, made.special.cls, made.special.sep, made.special.mask}


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_through_json(kind, english):
    made = tokenizer_lib.train(TokenizerConfig(kind=kind, vocab_size=600, lowercase=False), english)
    again = tokenizer_lib.from_json(json.loads(json.dumps(made.to_json())))
    assert tokenizer_lib.digest(again) == tokenizer_lib.digest(made)
    for one, other in zip(made.encode_batch(english[:50]), again.encode_batch(english[:50]), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("language", "texts"), [("french", FRENCH * 20), ("chinese", CHINESE * 20)])
def test_other_languages_survive(kind, language, texts):
    made = tokenizer_lib.train(TokenizerConfig(kind=kind, vocab_size=400, lowercase=False, strip_accents=False), texts)
    for text, ids in zip(texts, made.encode_batch(texts), strict=True):
        assert made.special.unk not in ids
        back = made.decode(ids)
        # Spaces around punctuation are not kept by WordPiece; SentencePiece normalises by NFKC.
        plain = "".join(unicodedata.normalize("NFKC", text).split())
        assert "".join(unicodedata.normalize("NFKC", back).split()) == plain


@pytest.mark.parametrize("kind", KINDS)
def test_case(kind, english):
    cased = tokenizer_lib.train(TokenizerConfig(kind=kind, vocab_size=600, lowercase=False), english)
    lower = tokenizer_lib.train(TokenizerConfig(kind=kind, vocab_size=600), english)
    upper_and_lower = ["The Planet", "the planet"]
    one, other = lower.encode_batch(upper_and_lower)
    np.testing.assert_array_equal(one, other)
    one, other = cased.encode_batch(upper_and_lower)
    assert one.tolist() != other.tolist()


def test_accents_are_stripped_by_bert_rules_unless_told_otherwise():
    kept = tokenizer_lib.train(TokenizerConfig(vocab_size=300, strip_accents=False), FRENCH * 20)
    stripped = tokenizer_lib.train(TokenizerConfig(vocab_size=300), FRENCH * 20)
    assert kept.decode(kept.encode_batch(["été"])[0]) == "été"
    assert stripped.decode(stripped.encode_batch(["été"])[0]) == "ete"


def test_training_is_the_same_in_every_process(tmp_path):
    """The WordPiece trainer alone is not: its alphabet comes in the order of a randomly seeded hash map."""
    (tmp_path / "texts.json").write_text(json.dumps(embedded_documents(300)))
    code = (
        "import json; from electra_jax.config import *; from electra_jax.data import tokenizer as t\n"
        "texts = json.load(open('texts.json'))\n"
        "for kind in ('wordpiece', 'unigram'):\n"
        "    print(t.digest(t.train(TokenizerConfig(kind=kind, vocab_size=2000), texts)))"
    )
    digests = [
        subprocess.check_output([sys.executable, "-c", code], env=process_env(), cwd=tmp_path, text=True).split()
        for _ in range(3)
    ]
    assert digests[0] == digests[1] == digests[2] and len({*digests[0]}) == 2


def test_wordpiece_agrees_with_an_independent_one(tmp_path, english):
    made = tokenizer_lib.train(TokenizerConfig(vocab_size=800), english)
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text(made.to_json()["vocabulary"])
    reference = BertWordPieceTokenizer(str(vocabulary), lowercase=True)
    for text, ids in zip(english[:100], made.encode_batch(english[:100]), strict=True):
        assert reference.encode(text, add_special_tokens=False).ids == ids.tolist()


def test_existing_vocabularies(tmp_path, english):
    made = tokenizer_lib.train(TokenizerConfig(vocab_size=600), english)
    (tmp_path / "vocab.txt").write_text(made.to_json()["vocabulary"] + "\n")
    loaded = tokenizer_lib.load_vocab_file(TokenizerConfig(vocab_file=str(tmp_path / "vocab.txt")))
    assert tokenizer_lib.digest(loaded) == tokenizer_lib.digest(made)


@pytest.mark.parametrize(
    ("kind", "content", "part"),
    [
        ("wordpiece", b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\n", r"lacks \[MASK\]"),
        ("wordpiece", b"[UNK]\n[PAD]\n[CLS]\n[SEP]\n[MASK]\n", r"\[PAD\] as id 1"),
        ("wordpiece", b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\nthe\n", "'the' more than once"),
        ("wordpiece", b"\xff\xfe\x00", "not UTF-8"),
        ("unigram", b"nothing of the kind", "not a SentencePiece model"),
    ],
)
def test_unfit_vocabularies_are_refused(tmp_path, kind, content, part):
    (tmp_path / "v").write_bytes(content)
    with pytest.raises(UserError, match=part):
        tokenizer_lib.load_vocab_file(TokenizerConfig(kind=kind, vocab_file=str(tmp_path / "v")))


def test_a_sentencepiece_model_of_another_kind_is_refused(tmp_path, english):
    """Trained with its own defaults it has no [PAD]; with user-defined [MASK], text could spell it."""
    options = {"sentence_iterator": iter(english), "vocab_size": 300, "minloglevel": 2, "hard_vocab_limit": False}
    sentencepiece.SentencePieceTrainer.train(model_prefix=str(tmp_path / "plain"), **options)
    with pytest.raises(UserError, match=r"lacks \[PAD\], \[CLS\]"):
        tokenizer_lib.load_vocab_file(TokenizerConfig(kind="unigram", vocab_file=str(tmp_path / "plain.model")))
    options["sentence_iterator"] = iter(english)
    sentencepiece.SentencePieceTrainer.train(
        model_prefix=str(tmp_path / "user"), pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, pad_piece="[PAD]",
        unk_piece="[UNK]", user_defined_symbols=["[CLS]", "[SEP]", "[MASK]"], **options,
    )  # fmt: skip
    with pytest.raises(UserError, match="plain pieces"):
        tokenizer_lib.load_vocab_file(TokenizerConfig(kind="unigram", vocab_file=str(tmp_path / "user.model")))
    with pytest.raises(UserError, match="no such file"):
        tokenizer_lib.load_vocab_file(TokenizerConfig(vocab_file=str(tmp_path / "absent.txt")))


def test_odd_text(english):
    texts = ["", " ", "\x00\x01", "😀 emoji", "a" * 500, "\u200b\ufeff", "ﬁ ligature"]
    for kind in KINDS:
        made = tokenizer_lib.train(TokenizerConfig(kind=kind, vocab_size=600), english)
        rows = made.encode_batch(texts)
        assert len(rows) == len(texts)
        assert all(row.dtype == np.int32 and row.ndim == 1 for row in rows)
        assert len(rows[0]) == 0


def test_sentencepiece_is_trained_on_long_lines_too():
    """SentencePiece's trainer would silently skip them: here, over half of the text."""
    short = ["one two three four five six seven"] * 50
    long = " ".join(f"{word}{end}" for word in ("sun", "moon", "star") for end in "abcdefgh") * 600
    assert len(long) > 64_000
    made = tokenizer_lib.train(TokenizerConfig(kind="unigram", vocab_size=80), [*short, long, "z" * 40_000])
    (ids,) = made.encode_batch([long])
    assert not np.any(ids == made.special.unk)
    assert "".join(tokenizer_lib._parts("word " * 9000)).replace(" ", "") == "word" * 9000  # nothing is lost


LOST = {
    "hi": ("हिन्दी भाषा में लिखा गया पाठ और कुछ शब्द। ", ["stripping accents"], []),
    "th": ("ภาษาไทยที่นี่เป็นข้อความยาวมากโดยไม่มีช่องว่างระหว่างคำซึ่งเป็นปัญหา"
           "สำหรับตัวตัดคำแบบเวิร์ดพีซเพราะว่ามันยาวเกินไปและยังมีอีกหลายคำที่ตามมาโดยไม่เว้นวรรค ",
           ["stripping accents", r"become \[UNK\].*kind=unigram"], [r"become \[UNK\].*kind=unigram"]),
    "ja": ("東京都に住むがぎぐげご人々 ", ["stripping accents"], []),
    "ko": ("한국어 문장입니다 그리고 더 많은 단어 ", ["stripping accents"], []),
    "fr": ("Où étiez-vous, Zoë ? école naïve e\u0301te\u0301 ", [], []),
    "ru": ("Привет, мир, ёлка, йод ", [], []),
    "el": ("Καλημέρα, κόσμε ", [], []),
    "ar": ("مرحبا بالعالم هذا نص ", [], []),
    "zh": (CHINESE[0], [], []),
}  # fmt: skip


@pytest.mark.parametrize("language", LOST)
def test_what_is_lost_of_a_script_is_warned_of(language):
    text, *expected = LOST[language]
    for lowercase, parts in zip((True, False), expected):
        made = tokenizer_lib.train(TokenizerConfig(vocab_size=300, lowercase=lowercase), [text * 20])
        found = scripts.warnings(made, [text * 50])
        assert len(found) == len(parts) and all(map(re.search, parts, found)), found
        made = tokenizer_lib.train(TokenizerConfig(kind="unigram", vocab_size=60, lowercase=lowercase), [text * 20])
        assert scripts.warnings(made, [text * 50]) == []
    english = tokenizer_lib.train(TokenizerConfig(kind="unigram", vocab_size=60), ["plain English words"] * 50)
    assert scripts.warnings(english, []) == []
    if language == "ko":
        assert "the vocabulary was made of other text" in scripts.warnings(english, [text])[0]
