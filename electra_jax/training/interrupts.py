"""Signals that ask a run to stop, and runs that stand still."""

import faulthandler
import signal
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Interrupts:
    """While active, Ctrl-C and SIGTERM are noted, acted upon between two steps, by all processes at the same one.

    A signal reaches one process. Each process tells all others of its own with a tiny collective at every `poll`, and
    goes by the result of the poll before: with a poll a step, that has been computed when the step before has, which the
    reporter waits for anyway. All processes poll at the same points of the program, so they stop at the same point.

    A second Ctrl-C stops a single process at once. Without a poll for `hang_timeout` seconds (0: never) the stacks of
    all threads are printed and the process ends with status 1, whatever it hangs in.
    """

    def __init__(self, mesh: Mesh, hang_timeout: float = 0.0):
        self.received: signal.Signals | None = None  # here
        self._agreed: signal.Signals | None = None
        self._pending: jax.Array | None = None
        self._hang_timeout = hang_timeout
        self._before = {}
        everywhere = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._is_alone = len({device.process_index for device in mesh.devices.flat}) == 1
        self._flags = lambda value: jax.make_array_from_callback(
            (mesh.size,), everywhere, lambda index: np.full(1, value, np.int32)
        )
        self._highest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._none = None if self._is_alone else self._flags(0)

    def __enter__(self) -> "Interrupts":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        self._sign_of_life()
        return self

    def __exit__(self, *_) -> None:
        faulthandler.cancel_dump_traceback_later()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def poll(self) -> signal.Signals | None:
        """The signal that all processes stop for, once there is one. To be called by all alike."""
        self._sign_of_life()
        if self._is_alone:
            return self.received
        if self._agreed is None:
            previous, self._pending = (
                self._pending,
                self._highest(self._none if self.received is None else self._flags(int(self.received))),
            )
            number = 0 if previous is None else int(previous)
            self._agreed = signal.Signals(number) if number else None
        return self._agreed

    def _sign_of_life(self) -> None:
        if self._hang_timeout:
            faulthandler.dump_traceback_later(self._hang_timeout, exit=True)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.received is not None and number == signal.SIGINT and self._is_alone:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
