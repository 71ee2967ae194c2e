"""What a record's token ids say about its layout: segments, positions, token types."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from electra_jax.models.electra import Text


class TokenIds(NamedTuple):
    """The special tokens: the layout is read from them, and objectives treat them differently from others."""

    pad: int
    cls: int
    sep: int
    mask: int
    two_segments: bool  # whether what follows the first [SEP] is token type 1


class Batch(NamedTuple):
    """A batch of records; all `[B, L]` int32 but `index`, `[B]`, a number for each record that its random draws depend on."""

    input_ids: jax.Array
    segment_ids: jax.Array  # 0 for padding; attention stays within equal numbers
    position_ids: jax.Array
    token_type_ids: jax.Array
    index: jax.Array

    @property
    def is_real(self) -> jax.Array:
        """`[B, L]` bool: not padding."""
        return self.segment_ids > 0

    @property
    def text(self) -> Text:
        """What the towers read of it."""
        return Text(self.input_ids, self.position_ids, self.token_type_ids, self.segment_ids)


def read_layout(input_ids: jax.Array, index: jax.Array, ids: TokenIds) -> Batch:
    """The batch of records `input_ids` `[B, L]`.

    Every [CLS] starts a segment with positions from 0 again. Text never yields special tokens (see
    `electra_jax.data.tokenizer`), so they mark the layout without doubt and nothing else has to be stored.
    """
    is_real = input_ids != ids.pad
    is_first = input_ids == ids.cls
    place = jnp.broadcast_to(jnp.arange(input_ids.shape[1]), input_ids.shape)
    start = jax.lax.cummax(jnp.where(is_first, place, 0), axis=1)
    separators = jnp.cumsum(input_ids == ids.sep, axis=1) - (input_ids == ids.sep)
    return Batch(
        input_ids=input_ids,
        segment_ids=jnp.where(is_real, jnp.maximum(jnp.cumsum(is_first, axis=1), 1), 0),
        position_ids=place - start,
        token_type_ids=jnp.where(is_real & ids.two_segments, jnp.minimum(separators, 1), 0),
        index=index,
    )
