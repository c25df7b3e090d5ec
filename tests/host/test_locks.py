from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest

from flannel_udp.errors import DeviceError
from flannel_udp.host import locks
from flannel_udp.host.netns import Namespace

PORT = 8285


def taken(namespace: Namespace, port: int = PORT) -> bool:
    lock = locks.hold(port)
    try:
        namespace.call(lock.__enter__)
    except DeviceError:
        return True
    lock.__exit__(None, None, None)
    return False


def held(namespace: Namespace, port: int = PORT) -> AbstractContextManager[None]:
    lock = locks.hold(port)
    namespace.call(lock.__enter__)
    return lock


def test_a_second_daemon_is_refused_with_a_sentence(namespace: Namespace) -> None:
    lock = held(namespace)
    with pytest.raises(DeviceError, match=r"already runs here on port 8285: .*Backend\.Port"):
        namespace.call(locks.hold(PORT).__enter__)
    lock.__exit__(None, None, None)
    assert not taken(namespace)


def test_whether_a_lock_is_held_can_be_asked(namespace: Namespace) -> None:
    assert namespace.call(locks.is_held, PORT) is False
    lock = held(namespace)
    assert namespace.call(locks.is_held, PORT) is True
    assert namespace.call(locks.is_held, PORT + 1) is False
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
    script = f"from flannel_udp.host import locks\nwith locks.hold({PORT}): print(); input()"
    command = [sys.executable, "-uc", script]
    with namespace.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert taken(namespace)
        holder.kill()
        holder.wait()
        assert not taken(namespace)
        assert namespace.call(locks.is_held, PORT) is False


def test_a_second_daemon_is_recognized_by_its_network_in_etcd(namespace: Namespace) -> None:
    one, other = "http://10.0.0.1:2379", "http://10.0.0.2:2379"
    lock = locks.hold_network("/net", [one, other])
    namespace.call(lock.__enter__)
    with pytest.raises(DeviceError, match=r"already runs here for /net in the same .*--etcd-pref"):
        namespace.call(locks.hold_network("/net", [other, one]).__enter__)
    for free in (("/other", [one, other]), ("/net", [one])):
        with locks.hold_network(*free):
            pass
    lock.__exit__(None, None, None)


def test_no_other_user_can_take_the_lock(namespace: Namespace) -> None:
    lock = held(namespace)
    (path,) = Path("/run/flannel").glob(f"net-{namespace.path.stat().st_ino}-*")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    nobody = ["setpriv", "--reuid=65534", "--clear-groups"]
    assert namespace.run([*nobody, "flock", "-n", str(path), "true"]).returncode != 0
    lock.__exit__(None, None, None)
    squat = namespace.run([*nobody, "flock", "-n", str(path), "true"])
    assert squat.returncode != 0
    assert not path.exists()
    # An abstract socket needs no rights.
    with namespace.call(socket.socket, socket.AF_UNIX) as squatter:
        squatter.bind(f"\0flannel-udp/{PORT}")
        assert not taken(namespace)


def test_lock_files_are_removed_with_the_lock_or_the_namespace(namespace: Namespace) -> None:
    inode = namespace.path.stat().st_ino
    lock = held(namespace)
    locks.remove_left(inode + 1)
    assert taken(namespace)
    lock.__exit__(None, None, None)
    assert not list(Path("/run/flannel").glob(f"net-{inode}-*"))
    held(namespace)
    locks.remove_left(inode)
    assert not list(Path("/run/flannel").glob(f"net-{inode}-*"))


def test_only_one_holds_the_lock_while_its_file_is_recreated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(locks, "_FOLDER", tmp_path / "new")
    inside: list[int] = []
    seen: list[int] = []

    def lock_and_release() -> None:
        for _ in range(300):
            with suppress(DeviceError), locks.hold(PORT):
                inside.append(1)
                seen.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=lock_and_release) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) == {1}
    assert os.listdir(tmp_path / "new") == []


def test_an_unwritable_folder_is_only_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(locks, "_FOLDER", tmp_path / "file")
    with locks.hold(PORT):
        pass
    assert "Not a directory; going on without" in caplog.text
