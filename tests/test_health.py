"""Warnings of collapse: each when it is due, once."""

from electra_jax.reporting.health import Health

GOOD = {"eval/replaced_share": 0.1, "eval/disc_recall": 0.4, "eval/disc_auc": 0.9, "eval/generator_entropy": 3.0}


def test_a_healthy_run_gives_no_warning():
    health = Health(warmup_steps=10, num_train_steps=30)
    assert [health.check(step, GOOD) for step in (5, 15, 25)] == [[], [], []]
    assert health.check(30, {"loss": 3.0}) == []


def test_each_sign_is_said_once_and_after_warm_up():
    for name, value, part in (
        ("eval/disc_recall", 0.0, "every token original"),
        ("eval/disc_auc", 0.52, "little above chance"),
        ("eval/generator_entropy", 0.01, "collapsed"),
    ):
        health = Health(warmup_steps=10, num_train_steps=30)
        bad = {**GOOD, name: value}
        assert health.check(10, bad) == []
        (warning,) = health.check(20, bad)
        assert part in warning
        assert name.removeprefix("eval/") in warning
        assert "step 20" in warning
        assert health.check(30, bad) == []


def test_a_discriminator_may_wait_for_its_generator():
    waits = {**GOOD, "eval/disc_recall": 0.0, "eval/disc_auc": 0.55}
    short, long = Health(warmup_steps=10, num_train_steps=6_000), Health(warmup_steps=10_000, num_train_steps=1_000_000)
    assert [len(short.check(step, waits)) for step in (500, 3_000, 3_500)] == [0, 0, 2]
    assert [len(long.check(step, waits)) for step in (11_000, 20_000, 30_000)] == [0, 0, 2]
    assert len(Health(10, 6_000).check(500, {**waits, "eval/generator_entropy": 0.01})) == 1  # nothing to wait for


def test_without_replaced_tokens_nothing_is_concluded():
    nothing = {"eval/replaced_share": 0.0, "eval/disc_recall": 0.0, "eval/disc_auc": 0.5}
    assert Health(warmup_steps=0, num_train_steps=30).check(20, nothing) == []


def test_a_run_without_held_out_records_is_watched_too():
    figures = {name.removeprefix("eval/"): value for name, value in GOOD.items()} | {"disc_auc": 0.5}
    assert len(Health(0, 30, prefix="").check(20, figures)) == 1
    assert Health(warmup_steps=0, num_train_steps=30).check(20, figures) == []
