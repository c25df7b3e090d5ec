"""Which labs exist on this machine; the next one removes what a killed one left behind."""

import json
import os
import re
import secrets
import shutil
import signal
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from flannel_udp.errors import LabError
from flannel_udp.host import locks, netns

RUN_DIR = Path("/run/flannel-udp-lab")

_NAME = re.compile(r"[a-z0-9]{1,12}")
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"


@dataclass(frozen=True, slots=True)
class LabRecord:
    """A lab as recorded in its file in RUN_DIR.

    ``owner_start`` (clock ticks after boot) distinguishes the owner from a later process with the
    same pid.
    ``directory`` holds the files of its etcd and daemons.
    """

    name: str
    owner: int
    owner_start: int
    directory: str

    @property
    def prefix(self) -> str:
        """What the names of all its network namespaces start with."""
        return f"fl{self.name}-"

    @property
    def path(self) -> Path:
        return RUN_DIR / f"{self.name}.json"

    def is_alive(self) -> bool:
        return _start_of(self.owner) == self.owner_start


def claim(name: str | None = None) -> LabRecord:
    """Register a lab of this process, under a random name if none is given.

    Raises LabError if the name is bad or in use.
    """
    if name is not None and not _NAME.fullmatch(name):
        raise LabError(
            f"a lab cannot be called {name!r}: use up to 12 lower-case letters and digits"
        )
    RUN_DIR.mkdir(parents=True, exist_ok=True)
    while True:
        chosen = name or "".join(secrets.choice(_ALPHABET) for _ in range(4))
        directory = tempfile.mkdtemp(prefix=f"flannel-udp-lab-{chosen}-")
        record = LabRecord(chosen, os.getpid(), _start_of(os.getpid()) or 0, directory)
        draft = RUN_DIR / f".{chosen}-{os.getpid()}"  # a link cannot lead to another file system
        draft.write_text(json.dumps(asdict(record)))
        try:
            os.link(draft, record.path)  # appears complete, and fails if the name exists
        except FileExistsError:
            shutil.rmtree(directory)
            if name is not None:
                raise LabError(f"a lab called {name} is running already: stop it first") from None
            continue
        finally:
            draft.unlink()
        return record


def remove(record: LabRecord) -> None:
    """Kill the processes in the lab's namespaces; delete the namespaces, its files, its record."""
    netns.settle()
    for namespace in netns.named(record.prefix):
        for pid in namespace.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(FileNotFoundError):
            locks.remove_left(namespace.path.stat().st_ino)
        namespace.delete()
    shutil.rmtree(record.directory, ignore_errors=True)
    record.path.unlink(missing_ok=True)


def remove_dead() -> list[LabRecord]:
    """Remove every lab whose owner has ended; the labs of living owners stay untouched."""
    dead = [record for record in read_all() if not record.is_alive()]
    for record in dead:
        remove(record)
    return dead


def read_all() -> list[LabRecord]:
    records = []
    for path in sorted(RUN_DIR.glob("*.json")):
        # Either its owner has just removed it, or another version of this program wrote it.
        with suppress(FileNotFoundError, ValueError, TypeError):
            records.append(LabRecord(**json.loads(path.read_text())))
    return records


def _start_of(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat, see proc(5); the name before it may contain anything."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state == "Z" else int(fields[18])
