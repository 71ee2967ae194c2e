"""What all processes agree upon between two steps: signals that ask a run to stop, saves that are due by the clock."""

import faulthandler
import signal
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Interrupts:
    """While active, Ctrl-C and SIGTERM are noted, acted upon between two steps, by all processes at the same one.

    A signal reaches one process. At every `poll` each process shares the signal it has received in a tiny collective, and
    acts on the result of the poll before: with one poll per step, that is ready once the step before is, which the
    reporter waits for anyway. All processes poll at the same points of the program, so they stop at the same point.

    In the same way process 0, whose clock counts, tells the others that a checkpoint is due.

    A second Ctrl-C stops a single process at once. Without a poll for `hang_timeout` seconds (0: never) the stacks of
    all threads are printed and the process ends with status 1, whatever it hangs in.
    """

    def __init__(self, mesh: Mesh, hang_timeout: float = 0.0):
        self.received: signal.Signals | None = None  # here
        self._agreed: signal.Signals | None = None
        self.save_is_agreed = False  # by the last poll
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

    def poll(self, save_is_due: bool | None = None) -> signal.Signals | None:
        """The signal that all processes stop for, once there is one. All must call it at the same points.

        Args:
          save_is_due: whether it is time for a checkpoint; `save_is_agreed` then says so on all processes. None, as from within
            an evaluation, leaves standing what was agreed on.
        """
        self._sign_of_life()
        before = self.save_is_agreed and save_is_due is None
        if self._is_alone:
            self.save_is_agreed = before or bool(save_is_due)
            return self.received
        if self._agreed is None:
            number = 2 * int(self.received or 0) + (bool(save_is_due) and jax.process_index() == 0)
            previous, self._pending = self._pending, self._highest(self._flags(number) if number else self._none)
            number = 0 if previous is None else int(previous)
            self.save_is_agreed = before or number == 1  # with a signal all is saved anyway
            self._agreed = signal.Signals(number // 2) if number > 1 else None
        return self._agreed

    def _sign_of_life(self) -> None:
        if self._hang_timeout:
            faulthandler.dump_traceback_later(self._hang_timeout, exit=True)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.received is not None and number == signal.SIGINT and self._is_alone:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
