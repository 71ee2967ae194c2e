"""SentencePiece models, run by the `tokenizers` library.

`sentencepiece` trains them. Text is encoded by the same pipeline that is exported as `tokenizer.json`, so a user
of the export gets the very ids that were trained on; sentencepiece's own encoder, which adds up scores in float32,
sometimes breaks a tie differently.
"""

import base64
from collections.abc import Sequence

import tokenizers
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, normalizers, pre_tokenizers

from electra_jax.data.encoding import Tokenizer
from electra_jax.data.packing import SPECIAL_TOKENS, SpecialTokens
from electra_jax.errors import UserError


class SentencePiece(Tokenizer):
    """A SentencePiece model (unigram or BPE), given as the bytes of its .model file."""

    def __init__(self, model: bytes):
        self.model = model
        proto = sentencepiece_model_pb2.ModelProto()
        try:
            proto.ParseFromString(model)
        except DecodeError as error:
            raise UserError(f"tokenizer.vocab_file is not a SentencePiece model ({error})") from None
        pieces, special = [piece.piece for piece in proto.pieces], _special(proto)
        super().__init__(pieces, special, pipeline(proto, _unspellable(pieces, special)))
        self.is_unigram = proto.trainer_spec.model_type == proto.trainer_spec.UNIGRAM
        self.lowercase = proto.normalizer_spec.name.endswith("_cf")  # case folding is part of these rules

    def to_json(self) -> dict[str, str]:
        return {"kind": "sentencepiece", "model": base64.b64encode(self.model).decode()}

    def with_special_names(self) -> tokenizers.Tokenizer:
        """The pipeline with special tokens under their own names, for a file that registers them."""
        proto = sentencepiece_model_pb2.ModelProto.FromString(self.model)
        return pipeline(proto, self.vocabulary)


def pipeline(proto: sentencepiece_model_pb2.ModelProto, pieces: Sequence[str]) -> tokenizers.Tokenizer:
    """The rules of a SentencePiece model in the `tokenizers` library.

    Args:
      proto: the model.
      pieces: what its pieces are to be called, in the order of their ids.

    Raises:
      UserError: for rules that the library does not have.
    """
    trainer, rules = proto.trainer_spec, proto.normalizer_spec
    unsupported = {
        "treat_whitespace_as_suffix": trainer.treat_whitespace_as_suffix,
        "no escape_whitespaces": not rules.escape_whitespaces,
        "user_defined_symbols": any(piece.type == piece.USER_DEFINED for piece in proto.pieces),
        "a model type other than unigram and bpe": trainer.model_type not in (trainer.UNIGRAM, trainer.BPE),
    }
    if any(unsupported.values()):
        found = ", ".join(name for name, is_set in unsupported.items() if is_set)
        raise UserError(f"the SentencePiece model has {found}, which cannot be used here; train one without")
    unknown = next(index for index, piece in enumerate(proto.pieces) if piece.type == piece.UNKNOWN)
    if trainer.model_type == trainer.UNIGRAM:
        scored = [(name, piece.score) for name, piece in zip(pieces, proto.pieces)]
        made = tokenizers.Tokenizer(models.Unigram(scored, unknown, byte_fallback=trainer.byte_fallback))
    else:
        ids = {piece: index for index, piece in enumerate(pieces)}
        ordinary = {name: i for (name, i), piece in zip(ids.items(), proto.pieces) if piece.type == piece.NORMAL}
        made = tokenizers.Tokenizer(
            models.BPE(ids, _merges(ordinary), unk_token=pieces[unknown], fuse_unk=True, byte_fallback=trainer.byte_fallback)
        )  # fmt: skip
    steps = [normalizers.Precompiled(rules.precompiled_charsmap)] if rules.precompiled_charsmap else []
    if rules.remove_extra_whitespaces:
        # Not normalizers.Strip(): it also removes white space other than U+0020. One space in front stays, as the dummy
        # prefix: in text after a [MASK], it tells a new word from the rest of one.
        steps += [normalizers.Replace(tokenizers.Regex(form), to) for form, to in ((" +$", ""), (" {2,}", " "))]
    if steps:
        made.normalizer = normalizers.Sequence(steps)
    prepend = "first" if rules.add_dummy_prefix else "never"
    made.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=prepend, split=False)
    made.decoder = decoders.Metaspace("▁", prepend_scheme=prepend, split=False)
    return made


def _special(proto: sentencepiece_model_pb2.ModelProto) -> SpecialTokens:
    ids = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    unknown = [index for index, piece in enumerate(proto.pieces) if piece.type == piece.UNKNOWN]
    missing = [token for token in SPECIAL_TOKENS if token not in ids and token != "[UNK]"]
    if missing or not unknown:
        lacks = ", ".join(missing) or "a piece for the unknown"
        raise UserError(f"the SentencePiece model of {len(proto.pieces)} pieces lacks {lacks}")
    ids["[UNK]"] = unknown[0]
    if ids["[PAD]"]:
        raise UserError(f"the SentencePiece model has [PAD] as id {ids['[PAD]']}; it must be 0")
    plain = [token for token in SPECIAL_TOKENS[2:] if proto.pieces[ids[token]].type != proto.pieces[0].CONTROL]
    if plain:
        raise UserError(
            f"the SentencePiece model has {', '.join(plain)} as plain pieces; train it with --control_symbols"
        )
    return SpecialTokens(*(ids[token] for token in SPECIAL_TOKENS))


def _unspellable(pieces: Sequence[str], special: SpecialTokens) -> list[str]:
    """The pieces, special ones under names that no normalised text contains, so that text that spells [MASK] stays text."""
    return [f"\0{piece}" if index in special else piece for index, piece in enumerate(pieces)]


def _merges(vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """The merges of a BPE model: for each piece, in the order of ids, all pairs of pieces that make it up."""
    merges = []
    for piece in vocabulary:
        halves = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        known = [(left, right) for left, right in halves if left in vocabulary and right in vocabulary]
        merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    return merges
