"""One daemon per network namespace and port, and per network of a cluster.

The locks are files owned by root. The kernel releases them when the process ends in any way
(flock(2)). Their names contain the network namespace, because namespaces may share /run.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from flannel_udp.errors import DeviceError

log = logging.getLogger(__name__)

# The folder of subnet.env: flannel in a container shares this folder with its host.
_FOLDER = Path("/run/flannel")


@contextlib.contextmanager
def hold(port: int) -> Iterator[None]:
    """Keep every other daemon here off this UDP port. Raises DeviceError if one has it."""
    with _locked(
        _path(f"port-{port}"),
        f"another flannel-udp already runs here on port {port}: stop it first, or give"
        " this one a network config with another Backend.Port",
    ):
        yield


@contextlib.contextmanager
def hold_network(prefix: str, endpoints: Iterable[str]) -> Iterator[None]:
    """Keep every other daemon here off this network in etcd: its port is not known yet.

    Raises DeviceError if one has it.
    """
    names = "\n".join([prefix, *sorted(endpoints)])
    digest = hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()
    with _locked(
        _path(f"network-{digest[:16]}"),
        f"another flannel-udp already runs here for {prefix or '/'} in the same etcd: stop it"
        " first, or give this one another --etcd-prefix",
    ):
        yield


def is_held(port: int) -> bool:
    """Whether a daemon runs here on this UDP port."""
    try:
        descriptor = os.open(_path(f"port-{port}"), os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:
        return True  # only root may look: assume that one runs
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def remove_left(namespace: int) -> None:
    """Remove the locks that killed daemons left in a network namespace, given by its inode."""
    for path in _FOLDER.glob(f"net-{namespace}-*.lock"):
        path.unlink(missing_ok=True)


def _path(name: str) -> Path:
    namespace = os.stat("/proc/thread-self/ns/net").st_ino
    return _FOLDER / f"net-{namespace}-{name}.lock"


@contextlib.contextmanager
def _locked(path: Path, taken: str) -> Iterator[None]:
    try:
        descriptor = _acquire(path)
    except OSError as error:
        # A second daemon still fails, later, when it binds the same UDP port.
        log.warning("cannot lock %s: %s; going on without", path, error.strerror)
        yield
        return
    if descriptor is None:
        raise DeviceError(taken)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _acquire(path: Path) -> int | None:
    """The locked file; None if another process holds the lock. Raises OSError."""
    if not path.parent.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(0o755)
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, descriptor):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        os.close(descriptor)  # its last owner has removed the file meanwhile


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
