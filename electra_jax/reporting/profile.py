"""A window of steps under JAX's profiler."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath

_SETTLED = 10  # steps after the start: compilation and first allocations lie behind


@contextlib.contextmanager
def profiled(step_fn: Callable, steps: int, directory: epath.Path, say: Callable[[str], None]) -> Iterator[Callable]:
    """`step_fn`, of which `steps` calls (0: none) are profiled once it has settled; `say` how to look at them.

    If the run ends within the window, the steps up to there are kept.
    """
    calls, recorded = itertools.count(), 0

    def close(result: Any = None) -> None:
        jax.block_until_ready(result)
        jax.profiler.stop_trace()
        say(f"profiled {recorded} steps; to look at them: pip install xprof && xprof --logdir={directory}")

    def step(*arguments: Any) -> Any:
        nonlocal recorded
        number = next(calls)
        if number == _SETTLED:
            jax.profiler.start_trace(str(directory))
        result = step_fn(*arguments)
        recorded += number >= _SETTLED and recorded < steps
        if number == _SETTLED + steps - 1:
            close(result)
        return result

    yield step if steps else step_fn
    if 0 < recorded < steps:
        close()
    elif recorded < steps:
        say(
            f"WARNING: nothing was profiled: config.reporting.profile_steps={steps} begins {_SETTLED} steps after the start"
        )
