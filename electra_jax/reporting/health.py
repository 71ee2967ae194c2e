"""Signs that a run collapses; each is reported once."""

from collections.abc import Mapping

# Up to this many steps, or half of its run, a discriminator that finds nothing may just be waiting for its generator: both
# first learn how frequent tokens are, which takes thousands of steps with small models and long sequences.
_PATIENCE = 20_000
_WAITING = "If masked_lm_loss still stands at its plateau, the generator comes first; otherwise"

_WATCHED = ("disc_recall", "disc_auc", "generator_entropy", "replaced_share")


class Health:
    """Watches figures for the ways replaced-token detection is known to fail."""

    def __init__(self, warmup_steps: int, num_train_steps: int, prefix: str = "eval/"):
        """`prefix` of the figures to go by: held-out ones, which cover more tokens than a batch, or `""`."""
        self._warmup_steps, self._prefix = warmup_steps, prefix
        self._turn = max(warmup_steps, min(_PATIENCE, num_train_steps // 2))
        self._said: set[str] = set()

    def check(self, step: int, figures: Mapping[str, float]) -> list[str]:
        """Warnings that these figures give for the first time."""
        if step <= self._warmup_steps:
            return []
        found = {}
        recall, auc, entropy, replaced = (figures.get(self._prefix + name) for name in _WATCHED)
        if not replaced:
            return []  # nothing to recognise, so nothing to conclude
        is_due = step > self._turn
        if is_due and recall is not None and recall < 0.005:
            found["recall"] = (
                f"disc_recall is {recall:.3f} at step {step}: the discriminator calls every token original. {_WAITING} lower "
                "optimizer.learning_rate, or raise objective.disc_weight"
            )
        if is_due and auc is not None and auc < 0.6:
            found["auc"] = (
                f"disc_auc is {auc:.3f} at step {step}, little above chance (0.5): the discriminator learns nothing. {_WAITING} "
                "lower optimizer.learning_rate, or make the generator smaller (model.generator_hidden_size)"
            )
        if entropy is not None and entropy < 0.1:
            found["entropy"] = (
                f"generator_entropy is {entropy:.3f} nats at step {step}: the generator has collapsed onto single tokens. "
                "Lower optimizer.learning_rate, or look at the data for repeated text"
            )
        new = [text for name, text in found.items() if name not in self._said]
        self._said |= found.keys()
        return new
