"""Warnings of collapse: each when it is due, once."""

from electra_jax.reporting.health import Health

GOOD = {"eval/disc_recall": 0.4, "eval/disc_auc": 0.9, "eval/generator_entropy": 3.0}


def test_a_healthy_run_gives_no_warning():
    health = Health(warmup_steps=10)
    assert [health.check(step, GOOD) for step in (5, 15, 25)] == [[], [], []]
    assert health.check(30, {"loss": 3.0}) == []


def test_each_sign_is_said_once_and_after_warm_up():
    for name, value, part in (
        ("eval/disc_recall", 0.0, "every token original"),
        ("eval/disc_auc", 0.52, "little above chance"),
        ("eval/generator_entropy", 0.01, "collapsed"),
    ):
        health = Health(warmup_steps=10)
        bad = {**GOOD, name: value}
        assert health.check(10, bad) == []
        (warning,) = health.check(20, bad)
        assert part in warning
        assert name.removeprefix("eval/") in warning
        assert "step 20" in warning
        assert health.check(30, bad) == []
