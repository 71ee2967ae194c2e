"""Work directories: shared by the processes of a run, and one run's at a time."""

import contextlib
from collections.abc import Iterator

import filelock
from etils import epath

from electra_jax import cli, distributed, storage
from electra_jax.errors import UserError


@contextlib.contextmanager
def locked(workdir: epath.Path) -> Iterator[None]:
    """Makes the work directory, and keeps other runs out of it; a bucket has no locks.

    Raises:
      UserError: where it cannot be made, is not shared, or is taken.
    """
    distributed.first_then_others(lambda: cli.make_directory("--workdir", workdir), "--workdir")
    distributed.check_shared("--workdir", workdir)
    # The library's fallback where there are no locks, a mere file in place of one, would outlive a process that is killed.
    lock = filelock.FileLock(workdir / ".lock", timeout=0, fallback_to_soft=False)
    held = distributed.is_first() and not storage.is_remote(workdir)
    error: Exception | None = None
    try:
        if held:
            lock.acquire()
    except filelock.Timeout:
        error = UserError(f"--workdir={workdir}: another run is training there; wait for it, or use another directory")
    except (OSError, NotImplementedError) as failure:
        if storage.is_without_locks(failure):
            print(
                f"WARNING: {workdir} cannot be locked ({failure}): see to it that no other run trains there", flush=True
            )
        else:
            error = failure
    distributed.agree(error, "--workdir")
    try:
        yield
    finally:
        lock.release()
