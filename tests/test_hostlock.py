from __future__ import annotations

import subprocess
import sys
from contextlib import AbstractContextManager

import pytest

from flannel_udp import hostlock
from flannel_udp.errors import DeviceError
from flannel_udp.netns import Namespace

PORT = 8285


def taken(namespace: Namespace, port: int = PORT) -> bool:
    lock = hostlock.hold(port)
    try:
        namespace.call(lock.__enter__)
    except DeviceError:
        return True
    lock.__exit__(None, None, None)
    return False


def held(namespace: Namespace, port: int = PORT) -> AbstractContextManager[None]:
    lock = hostlock.hold(port)
    namespace.call(lock.__enter__)
    return lock


def test_a_second_daemon_is_refused_with_a_sentence(namespace: Namespace) -> None:
    lock = held(namespace)
    with pytest.raises(DeviceError, match=r"already runs here on port 8285: .*Backend\.Port"):
        namespace.call(hostlock.hold(PORT).__enter__)
    lock.__exit__(None, None, None)
    assert not taken(namespace)


def test_asking_whether_a_daemon_runs_does_not_disturb_it(namespace: Namespace) -> None:
    assert namespace.call(hostlock.is_held, PORT) is False
    lock = held(namespace)
    assert namespace.call(hostlock.is_held, PORT) is True
    assert namespace.call(hostlock.is_held, PORT + 1) is False
    lock.__exit__(None, None, None)


def test_another_port_or_another_namespace_is_free(namespace: Namespace) -> None:
    other = Namespace(f"{namespace.name}-b")
    other.create()
    try:
        lock = held(namespace)
        assert not taken(namespace, PORT + 1)
        assert not taken(other)
        assert taken(namespace)
        lock.__exit__(None, None, None)
    finally:
        other.delete()


def test_a_killed_daemon_leaves_no_lock(namespace: Namespace) -> None:
    script = f"from flannel_udp import hostlock\nwith hostlock.hold({PORT}): print(); input()"
    command = [sys.executable, "-uc", script]
    with namespace.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert taken(namespace)
        holder.kill()
        holder.wait()
        assert not taken(namespace)
