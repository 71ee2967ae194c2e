"""A window of steps under JAX's profiler."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
from etils import epath

_SETTLED = 10  # steps after the start: compilation and first allocations lie behind


def profiled(step_fn: Callable, steps: int, directory: epath.Path, say: Callable[[str], None]) -> Callable:
    """`step_fn`, of which `steps` calls (0: none) are profiled once it has settled; `say` how to look at them."""
    if not steps:
        return step_fn
    calls = itertools.count()

    def step(*arguments: Any) -> Any:
        number = next(calls)
        if number == _SETTLED:
            jax.profiler.start_trace(str(directory))
        result = step_fn(*arguments)
        if number == _SETTLED + steps - 1:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()
            say(f"profiled {steps} steps; to look at them: pip install xprof && xprof --logdir={directory}")
        return result

    return step
