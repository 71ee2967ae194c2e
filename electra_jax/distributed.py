"""Several processes as one run: how a process joins, and how all agree before anything is compiled.

As usual in JAX, every process runs the same program and sees all devices. Process 0 alone writes reports.
"""

import argparse
import hashlib
import importlib.util
import os
import secrets
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from electra_jax.config import TrainConfig
from electra_jax.errors import OthersFailed, UserError

T = TypeVar("T")
_A_WEEK = 7 * 24 * 3600 * 1000  # milliseconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags for machines whose environment does not name the processes itself, as TPU pods, SLURM and Open MPI do."""
    group = parser.add_argument_group(
        "several processes (detected automatically on TPU pods, under SLURM and Open MPI)"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--num_processes", type=int, metavar="N")
    group.add_argument("--process_id", type=int, metavar="I", help="from 0 on")


def join(args: argparse.Namespace, config: TrainConfig) -> None:
    """Joins the processes of the run, where there are several. To be called before anything touches a device.

    Raises:
      UserError: for flags that do not belong together.
      OthersFailed: where the others cannot be reached: a process that should be one of several never goes on alone.
    """
    flags = {"coordinator": args.coordinator, "num_processes": args.num_processes, "process_id": args.process_id}
    given = {name: value for name, value in flags.items() if value is not None}
    if given and len(given) < len(flags):
        missing = ", ".join(f"--{name}" for name in flags.keys() - given.keys())
        raise UserError(f"--{', --'.join(given)} given without {missing}: all three say which process this is")
    if given and not 0 <= args.process_id < args.num_processes:
        raise UserError(f"--process_id={args.process_id} must be from 0 to {args.num_processes - 1}")
    if given and not args.coordinator.rpartition(":")[2].isdecimal():
        raise UserError(f"--coordinator={args.coordinator} must be HOST:PORT")
    is_expected = bool(given) or _environment_has_several()
    if not is_expected and not _is_on_tpu():
        return
    # Signals are noticed and agreed upon by `training.interrupts`; JAX's service would take their handlers.
    jax.config.update("jax_enable_preemption_service", False)
    where = args.coordinator or "the coordinator that the environment names"
    failure = f"this process could not join the others at {where}"
    timeout = config.join_timeout
    # Where nobody answers, JAX would end the process with a dump of its own, after its own time-out.
    in_time = threading.Timer(timeout, _give_up, [f"{failure} within config.train.join_timeout={timeout} s"])
    in_time.daemon = True
    in_time.start()
    try:
        jax.distributed.initialize(
            args.coordinator,
            args.num_processes,
            args.process_id,
            initialization_timeout=timeout + 60,
            heartbeat_timeout_seconds=config.heartbeat_timeout,
            shutdown_timeout_seconds=60,
        )
        count, index = jax.process_count(), jax.process_index()
    except Exception as error:
        if not is_expected and isinstance(error, ValueError):
            # A TPU outside of Google Cloud's TPU VMs, such as in a notebook: JAX detects no cluster around it.
            print("no other processes around this TPU are known of: going on as one", flush=True)
            return
        raise OthersFailed(f"{failure}: {(str(error) or type(error).__name__).splitlines()[0]}") from None
    finally:
        in_time.cancel()
    if given and count != args.num_processes:
        raise UserError(f"--num_processes={args.num_processes}, but {count} are there")
    print(f"process {index} of {count}: {jax.local_device_count()} of {jax.device_count()} devices", flush=True)


def is_first() -> bool:
    """Whether this is process 0, which writes and speaks for all."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints on process 0."""
    if is_first():
        print(text, flush=True)


def together(compute: Callable[[], T], what: str) -> T:
    """Runs `compute()` on every process; if it fails on one, none of them goes on.

    Raises:
      OthersFailed: where it failed on another.
    """
    result, error = _attempt(compute)
    agree(error, what)
    return result


def first_then_others(compute: Callable[[], T], what: str) -> T:
    """Runs `compute()` on process 0, then on the others, which find its results on a shared disk.

    Raises:
      OthersFailed: where it failed on another.
    """
    if jax.process_count() == 1:
        return compute()
    result, error = None, None
    if is_first():
        result, error = _attempt(compute)
    agree(error, f"{what} on process 0")
    if not is_first():
        result, error = _attempt(compute)
    agree(error, what)
    return result


def agree(error: Exception | None, what: str) -> None:
    """Waits for all processes, and raises on all where one has an `error`."""
    if jax.process_count() == 1:
        if error:
            raise error
        return
    # Not a collective on the devices: that would time out long before process 0 has prepared a large text.
    ocp.multihost.get_barrier_sync_fn()(key=what, timeout_ms=_A_WEEK)
    failed = np.flatnonzero(multihost_utils.process_allgather(np.asarray(error is not None)))
    if error:
        raise error
    if len(failed):
        raise OthersFailed(f"process {', '.join(map(str, failed))} failed ({what}); its own line says why")


def check_same(value: str, what: str) -> None:
    """Refuses to go on where `value` is not the same on all processes; raises `UserError`."""
    if jax.process_count() == 1:
        return
    digests = multihost_utils.process_allgather(np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint8))
    others = [index for index, digest in enumerate(digests) if not np.array_equal(digest, digests[0])]
    if others:
        raise UserError(
            f"{what} is another on process {', '.join(map(str, others))} than on process 0; here it is {value}"
        )


def check_same_settings(settings: Mapping[str, Any]) -> None:
    """Refuses to go on where a setting, by its name, is not the same on all processes; raises `UserError`."""
    if jax.process_count() == 1:
        return
    digests = [hashlib.sha256(repr(value).encode()).digest() for value in settings.values()]
    everywhere = multihost_utils.process_allgather(np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), -1))
    differs = (everywhere != everywhere[0]).any(-1)  # by process and setting
    for name, of_setting in zip(settings, differs.T):
        if of_setting.any():
            others = ", ".join(map(str, np.flatnonzero(of_setting)))
            raise UserError(
                f"config.{name} is another on process {others} than on process 0; here it is {settings[name]!r}; start all "
                "processes with the same configuration"
            )


def check_shared(name: str, directory: epath.Path) -> None:
    """Refuses a directory in which the other processes do not see what process 0 writes; raises `UserError`."""
    if jax.process_count() == 1:
        return
    number = int(multihost_utils.broadcast_one_to_all(np.asarray(secrets.randbits(30), np.int32)))
    probe = directory / f".probe-{number}"
    if is_first():
        probe.write_text("")
    multihost_utils.sync_global_devices("probe written")
    sees = multihost_utils.process_allgather(np.asarray(probe.exists()))
    if is_first():
        probe.unlink()
    blind = ", ".join(map(str, np.flatnonzero(~sees)))
    if blind:
        raise UserError(
            f"{name}={directory} is not shared: process {blind} does not see what process 0 writes there; give a directory that "
            "all processes share (NFS, or gs://)"
        )


def _give_up(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(75)  # as `OthersFailed`, but from a thread: the main one is blocked in JAX


def _attempt(compute: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return compute(), None
    except Exception as error:  # the others must hear of it, whatever it is
        return None, error


def _environment_has_several() -> bool:
    """Whether the environment is one of those in which JAX finds the other processes itself."""
    names = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    if any(int(os.environ.get(name) or 1) > 1 for name in names):
        return True
    hosts = [host for host in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]
    return len(hosts) > 1 or "MEGASCALE_COORDINATOR_ADDRESS" in os.environ


def _is_on_tpu() -> bool:
    wanted = os.environ.get("JAX_PLATFORMS") or "tpu"
    if "tpu" not in wanted.split(",") or importlib.util.find_spec("libtpu") is None:
        return False
    return any(os.path.exists(device) for device in ("/dev/accel0", "/dev/vfio/0"))
