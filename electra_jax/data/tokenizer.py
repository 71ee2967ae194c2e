"""Tokenizers: WordPiece, and SentencePiece's unigram and BPE, all run by the `tokenizers` library.

Both kinds give the same five special tokens, never produced by text that merely spells them, with [PAD] as
id 0. A tokenizer is a JSON object (`to_json`) that is saved whole with every run and checkpoint.
"""

import base64
import collections
import hashlib
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence

import sentencepiece
import tokenizers
from etils import epath
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from electra_jax.config import TokenizerConfig
from electra_jax.data.encoding import Tokenizer
from electra_jax.data.packing import SPECIAL_TOKENS, SpecialTokens
from electra_jax.data.sentencepiece_model import SentencePiece
from electra_jax.errors import UserError

# Share of a text's characters that get pieces of their own when a vocabulary is trained; rarer ones become [UNK].
_CHARACTER_COVERAGE = 0.9999
# The most characters, of up to 4 bytes each, of a sentence that SentencePiece is trained on.
_SENTENCE = 16_000


def train(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Trains a vocabulary; the same texts give the same one, byte for byte. `texts` is iterated over once."""
    texts = iter(texts)
    first = next(texts, None)
    if first is None:
        raise UserError("config.data.source holds no text to train a vocabulary on")
    texts = itertools.chain([first], texts)
    if config.kind == "wordpiece":
        return WordPiece(_train_wordpiece(config, texts), config.lowercase, config.strip_accents)
    return SentencePiece(_train_sentencepiece(config, texts))


def load_vocab_file(config: TokenizerConfig) -> Tokenizer:
    """The tokenizer of `tokenizer.vocab_file`: a vocab.txt, or a SentencePiece model.

    Raises:
      UserError: where the file is absent, of the wrong form, or lacks a special token.
    """
    path = epath.Path(config.vocab_file).expanduser()
    if not path.exists() or path.is_dir():
        raise UserError(f"config.tokenizer.vocab_file={config.vocab_file!r}: no such file")
    if config.kind == "wordpiece":
        try:
            vocabulary = path.read_bytes().decode("utf-8").replace("\r\n", "\n").removesuffix("\n").split("\n")
        except UnicodeDecodeError:
            raise UserError(
                f"config.tokenizer.vocab_file={config.vocab_file!r} is not UTF-8 text; tokenizer.kind=wordpiece reads a vocab.txt"
            ) from None
        return WordPiece(vocabulary, config.lowercase, config.strip_accents)
    return SentencePiece(path.read_bytes())


def from_json(saved: dict[str, str]) -> Tokenizer:
    """The tokenizer that `to_json` saved."""
    if saved["kind"] == "wordpiece":
        strip = {"True": True, "False": False, "None": None}[saved["strip_accents"]]
        return WordPiece(saved["vocabulary"].split("\n"), saved["lowercase"] == "True", strip)
    return SentencePiece(base64.b64decode(saved["model"]))


def digest(tokenizer: Tokenizer) -> str:
    """Identifies a tokenizer: equal for two that give the same ids for every text."""
    return hashlib.sha256(json.dumps(tokenizer.to_json(), sort_keys=True).encode()).hexdigest()[:16]


class WordPiece(Tokenizer):
    """BERT's and ELECTRA's WordPiece over the given vocabulary, a list of tokens in the order of their ids."""

    def __init__(self, vocabulary: Sequence[str], lowercase: bool, strip_accents: bool | None):
        ids = {token: index for index, token in enumerate(vocabulary)}
        if len(ids) != len(vocabulary):
            twice = next(token for token, count in collections.Counter(vocabulary).items() if count > 1)
            raise UserError(f"the WordPiece vocabulary lists {twice!r} more than once")
        missing = [token for token in SPECIAL_TOKENS if token not in ids]
        if missing:
            raise UserError(f"the WordPiece vocabulary of {len(vocabulary)} tokens lacks {', '.join(missing)}")
        if ids["[PAD]"]:
            raise UserError(f"the WordPiece vocabulary has [PAD] as id {ids['[PAD]']}; it must be the first token")
        made = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
        made.normalizer = _bert_normalizer(lowercase, strip_accents)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        super().__init__(vocabulary, SpecialTokens(*(ids[token] for token in SPECIAL_TOKENS)), made)
        self.lowercase, self.strip_accents = lowercase, strip_accents

    def with_special_names(self) -> tokenizers.Tokenizer:
        """A copy of the pipeline, for a file that registers special tokens: this one must not know them."""
        return tokenizers.Tokenizer.from_str(self._tokenizer.to_str())

    def to_json(self) -> dict[str, str]:
        return {
            "kind": "wordpiece",
            "vocabulary": "\n".join(self.vocabulary),
            "lowercase": str(self.lowercase),
            "strip_accents": str(self.strip_accents),
        }


def _bert_normalizer(lowercase: bool, strip_accents: bool | None) -> normalizers.Normalizer:
    return normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=strip_accents, lowercase=lowercase
    )


def _train_wordpiece(config: TokenizerConfig, texts: Iterable[str]) -> list[str]:
    normalizer, split = _bert_normalizer(config.lowercase, config.strip_accents), pre_tokenizers.BertPreTokenizer()
    words = collections.Counter(
        word for text in texts for word, _ in split.pre_tokenize_str(normalizer.normalize_str(text))
    )
    alphabet = _alphabet(words, config.vocab_size)
    known = set(alphabet)
    words = {w: n for w, n in words.items() if w[0] in known and all("##" + c in known for c in w[1:])}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # The trainer numbers characters in the order of a hash map, which differs from run to run, and breaks
    # ties by those numbers. Given first, as special tokens, all characters have fixed numbers.
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size, min_frequency=2, special_tokens=[*SPECIAL_TOKENS, *alphabet],
        continuing_subword_prefix="##", show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator((" ".join([w] * n) for w, n in sorted(words.items())), trainer)
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def _alphabet(words: collections.Counter, vocab_size: int) -> list[str]:
    """Single characters that get a token, as first of a word and as continuation (`##`), sorted.

    Held to half the vocabulary, commonest first; characters beyond `_CHARACTER_COVERAGE` are left out.
    """
    counts: collections.Counter = collections.Counter()
    for word, count in words.items():
        counts[word[0]] += count
        for character in word[1:]:
            counts["##" + character] += count
    total, covered, chosen = sum(counts.values()), 0, []
    for form, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if covered >= _CHARACTER_COVERAGE * total or len(chosen) >= vocab_size // 2:
            break
        covered += count
        chosen.append(form)
    # The trainer wants each character without its prefix too.
    return sorted({*chosen, *(form[-1] for form in chosen)})


def _parts(line: str) -> Iterator[str]:
    """A line in parts of up to `_SENTENCE` characters, cut at white space where there is any."""
    while line := line.strip():
        end = len(line) if len(line) <= _SENTENCE else max(line.rfind(" ", 0, _SENTENCE), 0) or _SENTENCE
        yield line[:end]
        line = line[end:]


def _train_sentencepiece(config: TokenizerConfig, texts: Iterable[str]) -> bytes:
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            # The trainer passes over sentences of more than `max_sentence_length` bytes, without a word.
            sentence_iterator=(part for text in texts for line in text.splitlines() for part in _parts(line)),
            model_writer=model, model_type=config.kind, vocab_size=config.vocab_size, hard_vocab_limit=False,
            character_coverage=_CHARACTER_COVERAGE, max_sentence_length=4 * _SENTENCE,
            normalization_rule_name="nmt_nfkc_cf" if config.lowercase else "nmt_nfkc",
            pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, pad_piece="[PAD]", unk_piece="[UNK]",
            control_symbols=["[CLS]", "[SEP]", "[MASK]"],
            # More threads add up the same floats in another order, and give another vocabulary.
            num_threads=1, minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        raise UserError(f"SentencePiece could not train tokenizer.vocab_size={config.vocab_size}: {error}") from None
    return model.getvalue()
