"""What an encoder knows of grammar, without training: `python -m electra_jax.minimal_pairs --init=PATH FILE...`

Pairs of sentences that differ in one point, one of them acceptable (BLiMP; Warstadt et al., 2020). The discriminator scores
a sentence by the log-probability that each of its tokens is the original; the acceptable one should score higher.
"""

import collections
import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from electra_jax import cli
from electra_jax.errors import UserError
from electra_jax.models.electra import Architecture, Text
from electra_jax.tasks import batches, encoder, examples, formats
from electra_jax.tasks.config import TaskConfig
from electra_jax.tasks.formats import Row
from electra_jax.tasks.kinds import Feature, joined

_FIELDS = ("sentence_good", "sentence_bad")


def main(argv: list[str]) -> None:
    parser = cli.parser("electra_jax.minimal_pairs", __doc__.partition("\n\n")[2], with_config=False)
    parser.add_argument(
        "--init", required=True, metavar="DIR[@STEP]", help="a work directory or an exported discriminator"
    )
    parser.add_argument("--per_token", action="store_true", help="score by the mean over tokens, not their sum")
    cli.add_json(parser)
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="JSON lines with sentence_good and sentence_bad, and maybe UID to group by",
    )
    args = cli.arguments(parser, argv)
    cli.directory("--init", args.init)
    scorer = Scorer(encoder.load(args.init, with_head=True), args.per_token)
    right: dict[str, list[bool]] = collections.defaultdict(list)
    num_cut = num_equal = 0
    for name in args.files:
        rows = list(formats.rows(cli.local_path("FILE", name), TaskConfig(format="jsonl")))
        pairs = [[_sentence(row, field) for row in rows] for field in _FIELDS]
        (good, is_cut), (bad, is_cut_too) = map(scorer, pairs)
        for row, one, other, is_left_out in zip(rows, good, bad, is_cut | is_cut_too):
            if is_left_out:
                num_cut += 1
                continue
            num_equal += one == other
            right[str(row.values.get("UID", Path(name).stem))].append(bool(one > other))
    if num_cut:
        print(
            f"WARNING: left out {num_cut:,} of the pairs: longer than {scorer.longest} tokens, the longest text trained on"
        )
    if num_equal:
        print(f"WARNING: {num_equal:,} of the pairs have one score twice, which counts as wrong")
    if not right:
        raise UserError(f"{', '.join(args.files)}: no pair in there that can be scored")
    figures = {name: float(np.mean(found)) for name, found in sorted(right.items())}
    for name, value in figures.items():
        print(f"  {name:48} {value:.4f}  of {len(right[name]):,}")
    figures["accuracy"] = float(np.mean([one for found in right.values() for one in found]))
    cli.write_json(args.json, figures)
    print(f"accuracy {figures['accuracy']:.4f} of {sum(map(len, right.values())):,} pairs; chance is 0.5")


def _sentence(row: Row, field: str) -> str:
    found = examples.text(row, field)
    if not found.strip():
        raise UserError(f"{row.where}: no sentence in field {field!r}")
    return found


class Scorer:
    """Scores sentences by a discriminator.

    Attributes:
      longest: tokens of a sentence, [CLS] and [SEP] included.
    """

    def __init__(self, found: encoder.PretrainedEncoder, per_token: bool = False, batch_size: int = 64):
        self._tokenizer, self._per_token, self._size = found.tokenizer, per_token, batch_size
        self._params = found.params(None)
        self.longest = min(found.trained_length, found.model.max_position_embeddings)
        self._lengths = batches.lengths_up_to(self.longest)
        plain = dataclasses.replace(found.model, dtype="float32", attention="reference", remat="none")
        architecture, pad = Architecture(plain, found.tokenizer.vocab_size), found.tokenizer.special.pad

        @jax.jit
        def scores(params, input_ids: jax.Array, token_type_ids: jax.Array) -> jax.Array:
            real = input_ids != pad
            place = jnp.broadcast_to(jnp.arange(input_ids.shape[1]), input_ids.shape)
            text = Text(input_ids, place, token_type_ids, real.astype(jnp.int32))
            logits = architecture.merge(params).discriminator_logits(text)
            return jnp.where(real, -jax.nn.softplus(logits), 0).sum(-1)

        self._scores = functools.partial(scores, self._params)

    def __call__(self, sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Scores, and whether a sentence was cut to the longest length, `[N]` each."""
        encoded = self._tokenizer.encode_batch(sentences)
        features = [
            Feature(index, *joined([ids[: self.longest - 2]], self._tokenizer), np.float32(0), np.zeros(0))
            for index, ids in enumerate(encoded)
        ]
        pad = self._tokenizer.special.pad
        found = np.asarray(batches.outputs(self._scores, features, self._size, self._lengths, pad))
        is_cut = np.asarray([len(ids) > self.longest - 2 for ids in encoded], bool)
        return found / [len(feature.input_ids) for feature in features] if self._per_token else found, is_cut


if __name__ == "__main__":
    cli.run(main)
