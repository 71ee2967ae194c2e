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
    """Draws the masked positions of each example, and masks them.

    As many positions as `mask_prob` of an example's real tokens are chosen among those that are not [CLS], [SEP] or
    [MASK]; of the chosen ones `mask_token_prob` become [MASK] and the rest stay as they are (no random tokens: ELECTRA,
    appendix; google-research/electra, pretrain_helpers.py).

    Args:
      keys: `[B]`, a random key an example.
      batch: the records.
      ids: special tokens.
      config: rates, and whether a position can be drawn twice.
    """
    length = batch.input_ids.shape[1]
    slots = config.max_predictions(length)
    special = jnp.asarray([ids.cls, ids.sep, ids.mask])
    is_candidate = batch.is_real & (batch.input_ids[..., None] != special).all(-1)
    num_real, num_candidates = batch.is_real.sum(1), is_candidate.sum(1)
    wanted = jnp.clip(jnp.round(num_real * config.mask_prob).astype(jnp.int32), 1, slots)

    draws = jax.vmap(lambda key: jax.random.uniform(key, (length + slots,)))(keys)
    if config.mask_sampling == "with_replacement":
        used = jnp.arange(slots) < jnp.where(num_candidates > 0, wanted, 0)[:, None]
        positions = _draw_with_replacement(draws[:, :slots], is_candidate)
    else:
        used = jnp.arange(slots) < jnp.minimum(wanted, num_candidates)[:, None]
        _, positions = jax.lax.top_k(jnp.where(is_candidate, draws[:, :length], -1.0), slots)
    positions = jnp.sort(jnp.where(used, positions, length - 1), axis=1)  # unused slots go last

    is_hidden = used & (draws[:, length:] < config.mask_token_prob)
    return Masked(positions, used.astype(jnp.float32), put(batch.input_ids, positions, is_hidden, ids.mask))


def replace(input_ids: jax.Array, masked: Masked, sampled_ids: jax.Array, duplicates: str) -> jax.Array:
    """`input_ids` `[B, L]` with `sampled_ids` `[B, M]` at the masked positions.

    Args:
      input_ids: the text.
      masked: where.
      sampled_ids: what.
      duplicates: what a position with several samples gets, `objective.duplicate_positions`.
    """
    positions, used = masked.positions, masked.weights > 0
    same = (positions[:, :, None] == positions[:, None, :]) & used[:, :, None] & used[:, None, :]  # [B, M, M]
    if duplicates == "average":
        # The reference averages all ids that fall on a position, rounding down, which gives an unrelated id.
        count = same.sum(-1)
        sampled_ids = (same * sampled_ids[:, None, :]).sum(-1) // jnp.maximum(count, 1)
    is_first = used & ~jnp.tril(same, k=-1).any(-1)
    return put(input_ids, positions, is_first, sampled_ids)


def put(input_ids: jax.Array, positions: jax.Array, where: jax.Array, values: jax.Array | int) -> jax.Array:
    """`input_ids` `[B, L]` with `values` at `positions` `[B, M]`, in the slots where `where` is true."""
    outside = jnp.where(where, positions, input_ids.shape[1])
    rows = jnp.arange(input_ids.shape[0])[:, None]
    return input_ids.at[rows, outside].set(values, mode="drop")


def _draw_with_replacement(draws: jax.Array, is_candidate: jax.Array) -> jax.Array:
    """Uniform `draws` `[B, M]` as positions of candidates, `is_candidate` `[B, L]`."""
    count = is_candidate.sum(1, keepdims=True)
    which = jnp.minimum((draws * count).astype(jnp.int32), count - 1)
    candidates_first = jnp.argsort(~is_candidate, axis=1, stable=True)
    return jnp.take_along_axis(candidates_first, jnp.maximum(which, 0), axis=1)
