"""Tokenizers as Hugging Face's `tokenizer.json`, giving the same ids as ours.

Text that spells a special token is the exception: Hugging Face makes it that token, we never do.
"""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

from electra_jax.config import TokenizerConfig
from electra_jax.data.packing import SPECIAL_TOKENS
from electra_jax.data.sentencepiece_model import SentencePiece
from electra_jax.data.tokenizer import Tokenizer, WordPiece
from electra_jax.errors import UserError
from electra_jax.interop.weights import read_json

_ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
_SENTENCEPIECE_FILE = "spiece.model"


def write(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Writes what `AutoTokenizer` reads, and the vocabulary in the form it came in.

    Args:
      tokenizer: ours.
      folder: exists.
      max_length: tokens a model takes, [CLS] and [SEP] included.
    """
    named = [tokenizer.vocabulary[index] for index in tokenizer.special]  # SentencePiece's may call [UNK] otherwise
    roles = dict(zip(_ROLES, named))
    config: dict[str, Any] = {
        # Named, since AutoTokenizer would otherwise choose BertTokenizer by the model type, and split text by its rules.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **roles,
    }
    made = tokenizer.with_special_names()
    if isinstance(tokenizer, WordPiece):
        (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokenizer.vocabulary), encoding="utf-8")
        config |= {"do_lower_case": tokenizer.lowercase, "strip_accents": tokenizer.strip_accents}
    else:
        assert isinstance(tokenizer, SentencePiece)
        (folder / _SENTENCEPIECE_FILE).write_bytes(tokenizer.model)
    special = tokenizer.special
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", special.cls), ("[SEP]", special.sep)],
    )
    made.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in named])
    made.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", roles)


def read(folder: Path, default: TokenizerConfig) -> Tokenizer | None:
    """The tokenizer of a Hugging Face folder, or None where there is none that is known here.

    Args:
      folder: of the model.
      default: says whether to lower-case and strip accents where the folder holds a vocabulary alone.

    Raises:
      UserError: where it lacks a special token, or is damaged.
    """
    config, whole = (_read_json(folder / name) for name in ("tokenizer_config.json", "tokenizer.json"))
    if (folder / _SENTENCEPIECE_FILE).is_file():
        return _checked(SentencePiece((folder / _SENTENCEPIECE_FILE).read_bytes()), folder, whole)
    normalizer = whole.get("normalizer") or {}
    model = whole.get("model") or {}
    if (folder / "vocab.txt").is_file():
        try:
            vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{folder / 'vocab.txt'} is no UTF-8 text ({error})") from None
    elif model.get("type") == "WordPiece":
        ids = model.get("vocab") or {}
        vocabulary = sorted(ids, key=ids.__getitem__)
        if [ids[token] for token in vocabulary] != list(range(len(ids))):
            raise UserError(f"{folder / 'tokenizer.json'}: the ids of its vocabulary are not 0 to {len(ids) - 1}")
    else:
        return None
    for name, supported in (("tokenize_chinese_chars", True), ("handle_chinese_chars", True), ("clean_text", True)):
        if config.get(name, normalizer.get(name, supported)) != supported:
            raise UserError(f"{folder}: its tokenizer has {name}={not supported}, which the tokenizer here cannot do")
    lowercase = config.get("do_lower_case", normalizer.get("lowercase", default.lowercase))
    strip_accents = config.get("strip_accents", normalizer.get("strip_accents", default.strip_accents))
    kind = config.get("tokenizer_class")
    if not whole and kind not in _WORDPIECE_CLASSES:  # with a tokenizer.json, ids are compared instead
        raise UserError(
            f"{folder}: its tokenizer is a {kind}, which cuts text by rules that the tokenizer here does not have"
        )
    return _checked(WordPiece(vocabulary, lowercase, strip_accents), folder, whole)


_WORDPIECE_CLASSES = (None, "BertTokenizer", "BertTokenizerFast", "ElectraTokenizer", "ElectraTokenizerFast")
# What the rules of tokenizers differ in: case, accents, joined letters, other scripts, punctuation, white space, digits.
_PROBES = (
    "The quick brown fox, it's said, jumped over 12,345 LAZY dogs in the U.S.A.!",
    "Où étiez-vous, Zoë? Straße; e\u0301cole ﬁne İstanbul naïve",
    "  two  spaces\tand a tab, non\u00a0breaking, soft\u00adhyphen ",
    "東京都に住む人々 がぎぐ हिन्दी 한국어 Привет, мир",
)


def _checked(tokenizer: Tokenizer, folder: Path, whole: dict[str, Any]) -> Tokenizer:
    """`tokenizer`, if it gives the ids of the folder's `tokenizer.json` (`whole`, empty where there is none)."""
    added = {token["content"]: token["id"] for token in whole.get("added_tokens") or ()}
    added |= _read_json(folder / "added_tokens.json")
    if lost := [
        token for token, index in added.items() if index >= tokenizer.vocab_size and token not in SPECIAL_TOKENS
    ]:
        raise UserError(
            f"{folder}: its tokenizer has added tokens ({', '.join(lost[:5])}), which the tokenizer here cannot keep"
        )
    if not whole:
        return tokenizer
    path, normalizer = folder / "tokenizer.json", whole.get("normalizer") or {}
    if isinstance(tokenizer, WordPiece) and normalizer.get("type") == "BertNormalizer":
        # As transformers does: where tokenizer_config.json says otherwise, that counts.
        named = {"lowercase": tokenizer.lowercase, "strip_accents": tokenizer.strip_accents}
        whole = whole | {"normalizer": normalizer | named}
    try:
        theirs = tokenizers.Tokenizer.from_str(json.dumps(whole))
    except Exception as error:  # the library has one kind for all
        raise UserError(f"{path} is no tokenizer ({error})") from None
    theirs.no_truncation()
    theirs.no_padding()
    for text, ours in zip(_PROBES, tokenizer.encode_batch(_PROBES)):
        found = theirs.encode(text, add_special_tokens=False).ids
        if found != list(ours):
            at = next((i for i, (a, b) in enumerate(zip(found, ours)) if a != b), min(len(found), len(ours)))
            shown, other = (theirs.decode(list(ids[at : at + 6]), skip_special_tokens=False) for ids in (found, ours))
            raise UserError(
                f"{path} cuts text by rules that the tokenizer here does not have: of {text!r} it makes {shown!r} where "
                f"this one makes {other!r}"
            )
    return tokenizer


def max_length(folder: Path, positions: int) -> int:
    """The most tokens that a model in a Hugging Face folder takes, as its tokenizer says; otherwise all its positions."""
    said = _read_json(folder / "tokenizer_config.json").get("model_max_length")
    return min(int(said), positions) if isinstance(said, int | float) and said >= 1 else positions


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    return read_json(path)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
