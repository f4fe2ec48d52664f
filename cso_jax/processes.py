"""One run in several processes, on one machine or many, that share a file system.

The first process leads: its folder is the run's, it alone runs episodes, evaluates and reports. The others follow: each
goes through the same stages in a folder of its own, `workdir/.processes/<number>`, and computes its share of every
update. What only the leader makes (demonstrations, rollouts) it leaves in files, for which the others wait by looking:
no collective is open meanwhile, so nothing times out while simulators run. All else they compute alike, from the same
seeds.

Followers end with the leader. Where any process is lost JAX ends the others, within `_HEARTBEAT_S`; the same commands
go on from the last checkpoint.
"""

import dataclasses
import os
import pickle
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cso_jax.files import atomic_write_bytes

Made = TypeVar("Made")

USAGE = "--processes=HOST:PORT,COUNT,NUMBER, the leader being number 0, or --processes=auto under Slurm or MPI"
_FOLDER = ".processes"
_HEARTBEAT_S = 30
_LOOK_S = 0.1
_SHARED = ("demos", "rsft")  # folders of the leader that followers read
_FILES = ("config.json", "stages.json", "files.json", "task_embedding.npz")
_ENDED = "ended"


class ProcessesError(ValueError):
    """The processes of a run cannot be brought together; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Processes:
    """How many processes there are, which one this is, and the folder of this launch, in which they meet."""

    count: int
    number: int
    launch: str

    @property
    def leads(self) -> bool:
        return self.number == 0

    def folder(self, workdir: Path) -> Path:
        """Where this process keeps its run: the run's folder for the leader."""
        return workdir if self.leads else workdir / _FOLDER / str(self.number)


@dataclasses.dataclass(frozen=True)
class Meeting:
    """What the processes of one run tell one another, by files in the leader's `workdir`."""

    processes: Processes
    workdir: Path

    @property
    def _folder(self) -> Path:
        return self.workdir / _FOLDER / self.processes.launch

    def shared(self, name: str, make: Callable[[], Made]) -> Made:
        """What the leader's `make()` gives; the others wait for it. `name` is used once."""
        if self.processes.leads:
            made = make()
            atomic_write_bytes(self._folder / name, pickle.dumps(made))
            return made
        self._wait(name)
        _link(self.workdir, self.processes.folder(self.workdir))
        found: Made = pickle.loads((self._folder / name).read_bytes())
        return found

    def open(self) -> None:
        """The leader's folder is as it will begin; followers take over what it holds. Returns in all when all have."""
        if self.processes.leads:
            for leftover in (self.workdir / _FOLDER).glob("*-*"):
                if leftover.name != self.processes.launch:
                    shutil.rmtree(leftover, ignore_errors=True)
            self.shared("opened", lambda: None)
            for number in range(1, self.processes.count):
                self._wait(f"taken_over_{number}")
            return
        self._wait("opened")
        _mirror(self.workdir, self.processes.folder(self.workdir))
        threading.Thread(target=self._end_with_leader, name="leader", daemon=True).start()
        atomic_write_bytes(self._folder / f"taken_over_{self.processes.number}", b"")

    def take_over(self, stage: str) -> None:
        """After a stage of every process: followers have what the leader's left, which alone writes checkpoints."""
        self.shared(f"left_{stage}", lambda: None)
        if not self.processes.leads:
            _copy(self.workdir, self.processes.folder(self.workdir), f"checkpoints/{stage}")

    def leave(self, status: int) -> None:
        """End with the others: when the leader is done, or at once where something went wrong."""
        import jax

        if self.processes.leads:
            self._folder.mkdir(parents=True, exist_ok=True)
            atomic_write_bytes(self._folder / _ENDED, pickle.dumps(status))
        elif status == 0:
            self._wait(_ENDED)
        if status == 0:
            jax.distributed.shutdown()
        else:  # others may stand in an update and cannot be waited for
            sys.stderr.flush()
            os._exit(status)

    def _wait(self, name: str) -> None:
        while not (self._folder / name).exists():
            time.sleep(_LOOK_S)

    def _end_with_leader(self) -> None:
        """A follower may stand in an update that the leader will not join any more."""
        self._wait(_ENDED)
        if status := pickle.loads((self._folder / _ENDED).read_bytes()):
            os._exit(status)


def join(text: str) -> Processes:
    """Bring together the processes of `--processes=TEXT`, before JAX is used. Raises ProcessesError."""
    import jax
    from jax.experimental import multihost_utils

    try:
        if text == "auto":
            jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT_S)
        else:
            address, count, number = text.split(",")
            jax.distributed.initialize(address, int(count), int(number), heartbeat_timeout_seconds=_HEARTBEAT_S)
    except (ValueError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ProcessesError(f"--processes={text}: {first[:150]}; {USAGE}") from None
    mark = multihost_utils.broadcast_one_to_all(_random_number())
    return Processes(jax.process_count(), jax.process_index(), f"launch-{int(mark)}")


def _random_number():
    import numpy as np

    return np.frombuffer(os.urandom(4), np.uint32)[0] >> np.uint32(1)


def _mirror(leader: Path, own: Path) -> None:
    """What a run would find in the leader's folder, in a follower's own."""
    for name in (*_FILES, *_SHARED):
        place = own / name
        if place.is_symlink() or place.is_file():
            place.unlink()
        elif place.exists():
            shutil.rmtree(place)
    _copy(leader, own, "checkpoints")
    for name in _FILES:
        if (leader / name).exists():
            shutil.copy(leader / name, own / name)
    _link(leader, own)


def _copy(leader: Path, own: Path, name: str) -> None:
    shutil.rmtree(own / name, ignore_errors=True)
    if (leader / name).exists():
        shutil.copytree(leader / name, own / name)


def _link(leader: Path, own: Path) -> None:
    for name in _SHARED:
        if (leader / name).exists() and not (own / name).is_symlink():
            shutil.rmtree(own / name, ignore_errors=True)
            (own / name).symlink_to((leader / name).absolute(), target_is_directory=True)
