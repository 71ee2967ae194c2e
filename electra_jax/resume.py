"""What a run goes on from, and whether it may: a checkpoint of its own, another run's whole state, or weights alone."""

from etils import epath

from electra_jax import config_loading, distributed
from electra_jax.config import Config
from electra_jax.data import build
from electra_jax.data import tokenizer as tokenizer_lib
from electra_jax.errors import UserError
from electra_jax.reporting.writers import is_evaluated
from electra_jax.training import checkpoint, loop
from electra_jax.training.checkpoint import Origin, Saved
from electra_jax.training.optimizer import cooldown_start, ends_at_zero
from electra_jax.training.setup import Setup
from electra_jax.training.state import TrainState


def find_origin(workdir: epath.Path, init: str | None, branch: str | None) -> tuple[Origin | None, Origin | None]:
    """The checkpoint whose whole state is gone on from, and the one that gives weights alone.

    Raises:
      UserError: where there is no such checkpoint, or the work directory is that of a fine-tuning.
    """
    own = checkpoint.saved_steps(workdir / "checkpoints")
    if any(workdir.glob("seed-*")):
        raise UserError(f"--workdir={workdir} holds a fine-tuning; pretraining needs a directory of its own")
    if own:
        if init or branch:
            distributed.say(
                f"{workdir} has checkpoints of its own and goes on from them; --init and --branch are for a new run"
            )
        return Origin(workdir / "checkpoints", own[-1]), None
    return checkpoint.find(branch) if branch else None, checkpoint.find(init) if init else None


def check(saved: Saved, config: Config, workdir: epath.Path, origin: Origin) -> None:
    """Warns of settings changed since the checkpoint; raises `UserError` where such a change is not allowed."""
    was, now = saved.config.train.num_train_steps, config.train.num_train_steps
    has_ended = saved.data and saved.step == was and ends_at_zero(saved.config)
    if has_ended and now > was and _is_own(origin, workdir):
        begin = cooldown_start(saved.config)
        before = f"{workdir}@{begin}" if begin in checkpoint.saved_steps(workdir / "checkpoints") else workdir
        raise UserError(
            f"{workdir} was finished at step {was:,}, its learning rate decayed to 0; config.train.num_train_steps={now} would "
            f"raise it again and go on over what is there. Set {was} to leave it as it is, or train on elsewhere: "
            f"--branch={before} --workdir=ANOTHER"
        )
    begin_then, begin, cooldown = cooldown_start(saved.config), cooldown_start(config), config.optimizer.cooldown_steps
    is_level = saved.config.optimizer.schedule == "wsd" and (begin_then is None or saved.step <= begin_then)
    if saved.data and is_level and begin is not None and begin < saved.step < now:
        raise UserError(
            f"{origin}: the learning rate is level there, and would fall at once: the cooldown of config.optimizer.cooldown_steps="
            f"{cooldown} would have begun at step {begin:,}; set config.train.num_train_steps={saved.step + cooldown}, or "
            f"cooldown_steps to {now - saved.step} at the most"
        )
    # An imported checkpoint has been trained on nothing here yet: it determines the model and the optimizer's state.
    only = ("",) if saved.data else ("model.", "optimizer.bias_correction")
    for warning in config_loading.check_resume(saved.config, config, only):
        distributed.say(f"WARNING: {warning}")


def check_data(saved: Saved, prepared: build.Prepared, origin: Origin) -> None:
    """Raises `UserError` where the data are not those that the run has been trained on."""
    if saved.data and saved.data != prepared.digest:
        raise UserError(
            f"{origin} was trained on other data than {prepared.directories[0]} holds ({saved.data}, now {prepared.digest}), "
            "so it cannot be resumed: put the old text back, or start a new run with --init"
        )


def evaluation_is_due(saved: Saved, config: Config, workdir: epath.Path, origin: Origin) -> bool:
    """Whether a signal cut short the evaluation at the step that this checkpoint of the run was saved at."""
    due = loop.is_evaluation_step(saved.step, config) and _is_own(origin, workdir) and bool(saved.data)
    return due and config.data.validation_fraction > 0 and not is_evaluated(workdir / "metrics.jsonl", saved.step)


def is_finished(saved: Saved, config: Config, workdir: epath.Path, origin: Origin) -> bool:
    """Whether the run has come to its end; raises `UserError` where a branch has nothing to do."""
    if saved.step < config.train.num_train_steps:
        return False
    stands = f"it stands at step {saved.step:,} of config.train.num_train_steps={config.train.num_train_steps:,}"
    if not _is_own(origin, workdir):
        raise UserError(f"--branch={origin}: nothing is left to train, {stands}; raise the latter")
    distributed.say(f"{workdir} is finished: {stands}")
    return True


def _is_own(origin: Origin, workdir: epath.Path) -> bool:
    return origin.directory == workdir / "checkpoints"


def start_state(
    setup: Setup, prepared: build.Prepared, origin: Origin | None, saved: Saved | None, weights: Origin | None
) -> tuple[TrainState, loop.Position, int]:
    """The state to begin with: that of a checkpoint, a new one with another run's weights, or a fresh one.

    Returns:
      The state, its position, and the tokens of the longest text that it has been trained on.

    Raises:
      UserError: where other weights do not fit.
    """
    if origin and saved:
        distributed.say(f"going on from {origin}")
        position = loop.Position(saved.step, saved.sequences)
        return checkpoint.restore(origin, setup.abstract), position, saved.trained_length
    params, trained_length = None, 0
    if weights:
        donor = checkpoint.read_saved(weights)
        trained_length = donor.trained_length
        there = tokenizer_lib.digest(tokenizer_lib.from_json(donor.tokenizer))
        if there != tokenizer_lib.digest(prepared.tokenizer):
            raise UserError(
                f"--init: {weights} was trained with vocabulary {there}, the data of this configuration have "
                f"{tokenizer_lib.digest(prepared.tokenizer)}: its ids mean other tokens. Use the same tokenizer settings "
                "and source, or tokenizer.vocab_file"
            )
        # A masked-LM model has everything that a tied one needs except the discriminator's head.
        begins = donor.config.model.towers == "masked_lm" and setup.config.model.towers == "tied"
        fresh = setup.fresh_params(setup.config.seed) if begins else None
        params = checkpoint.restore_params(weights, setup.abstract.params, fresh)
        distributed.say(f"starting from the weights of {weights}" + ", the discriminator's head fresh" * begins)
        if donor.step and donor.data == prepared.digest and donor.config.seed == setup.config.seed:
            distributed.say(
                f"WARNING: {weights} has seen the same text in the same order with the same masks; another config.seed changes both"
            )
    return setup.init(params), loop.Position(0, 0), trained_length
