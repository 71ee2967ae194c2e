"""Which positions the generator has to fill, and what it sees there."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from electra_jax.config import ObjectiveConfig
from electra_jax.objectives.layout import Batch, TokenIds


class Masked(NamedTuple):
    """Positions to fill, `[B, M]`; slots that are not used have weight 0 and any position."""

    positions: jax.Array  # [B, M] int32, ascending
    weights: jax.Array  # [B, M] float32, 1 or 0
    input_ids: jax.Array  # [B, L] int32, the generator's input


def choose(keys: jax.Array, batch: Batch, ids: TokenIds, config: ObjectiveConfig) -> Masked:
    """Draws the masked positions of each example, without replacement, and masks them.

    `mask_prob` of an example's real tokens are chosen among those that are not [CLS], [SEP] or [MASK]; of
    the chosen ones `mask_token_prob` become [MASK] and the rest stays as it is (no random tokens: ELECTRA,
    appendix; google-research/electra, pretrain_helpers.py).

    Args:
      keys: `[B]`, a random key an example.
      batch: the records.
      ids: special tokens.
      config: rates.
    """
    length = batch.input_ids.shape[1]
    slots = config.max_predictions(length)
    special = jnp.asarray([ids.cls, ids.sep, ids.mask])
    is_candidate = batch.is_real & (batch.input_ids[..., None] != special).all(-1)
    num_real = batch.is_real.sum(1)
    wanted = jnp.clip(jnp.round(num_real * config.mask_prob).astype(jnp.int32), 1, slots)
    wanted = jnp.minimum(wanted, is_candidate.sum(1))

    draws = jax.vmap(lambda key: jax.random.uniform(key, (length + slots,)))(keys)
    scores = jnp.where(is_candidate, draws[:, :length], -1.0)
    _, positions = jax.lax.top_k(scores, slots)
    used = jnp.arange(slots) < wanted[:, None]
    positions = jnp.sort(jnp.where(used, positions, length - 1), axis=1)  # unused slots go last
    weights = used.astype(jnp.float32)

    is_hidden = used & (draws[:, length:] < config.mask_token_prob)
    return Masked(positions, weights, put(batch.input_ids, positions, is_hidden, ids.mask))


def put(input_ids: jax.Array, positions: jax.Array, where: jax.Array, values: jax.Array | int) -> jax.Array:
    """`input_ids` `[B, L]` with `values` at `positions` `[B, M]`, in the slots where `where` is true."""
    outside = jnp.where(where, positions, input_ids.shape[1])
    rows = jnp.arange(input_ids.shape[0])[:, None]
    return input_ids.at[rows, outside].set(values, mode="drop")
