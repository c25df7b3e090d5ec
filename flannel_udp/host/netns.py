"""Network namespaces for the lab: created, wired and entered; this process stays in its own.

A namespace is entered by a short-lived thread, because setns(2) moves only the calling thread.
Child processes and namespaces are made by one thread that lives as long as the process: the death
signal that children ask for is sent when the thread that started them ends (prctl(2)), and Ctrl-C,
which interrupts only the main thread, does not stop it half-way (see settle).
"""

import functools
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pyroute2.netns

from flannel_udp.host.netlink import index_of, netlink

RUN_DIR = Path("/run/netns")

P = ParamSpec("P")
T = TypeVar("T")

_worker = ThreadPoolExecutor(1, thread_name_prefix="netns")


def _inside(method: Callable[P, T]) -> Callable[P, T]:
    """The method of Namespace runs inside it, together with its netlink socket: a pyroute2 socket
    used from another thread silently opens a second one in that thread's namespace.

    Raises DeviceError for what the kernel refuses.
    """

    @functools.wraps(method)
    def call_inside(*args: P.args, **kwargs: P.kwargs) -> T:
        namespace = args[0]
        assert isinstance(namespace, Namespace)
        return namespace.call(method, *args, **kwargs)

    return call_inside


@dataclass(frozen=True, slots=True)
class Namespace:
    """A named network namespace, as ``ip netns`` lists it."""

    name: str

    @property
    def path(self) -> Path:
        return RUN_DIR / self.name

    def create(self) -> None:
        """Raises FileExistsError if the name is taken, OSError without the right to do it."""
        uninterrupted(pyroute2.netns.create, self.name)
        self.set_link("lo", state="up")

    def delete(self) -> None:
        """Its devices vanish with the last process in it; fine if the name is gone."""
        try:
            pyroute2.netns.remove(self.name)
        except FileNotFoundError:
            return

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of the function, run inside the namespace."""

        def enter_and_call() -> T:
            pyroute2.netns.setns(self.name, flags=0, fork=False)
            return function(*args, **kwargs)

        with ThreadPoolExecutor(1) as inside:
            return inside.submit(enter_and_call).result()

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """A process in the namespace, killed when this process ends. Options as for Popen."""
        inside = ("ip", "netns", "exec", self.name, *argv)
        return popen(inside, **options)

    def run(
        self, argv: Sequence[str], *, timeout: float = 60, check: bool = False, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """As subprocess.run with the output captured as text; killed after ``timeout`` seconds."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        feed = options.pop("input", None)
        if feed is not None:
            options["stdin"] = subprocess.PIPE
        with self.popen(argv, **options) as process:
            try:
                out, err = process.communicate(feed, timeout)
            except BaseException:
                process.kill()
                raise
        result = subprocess.CompletedProcess(list(argv), process.returncode, out, err)
        if check:
            result.check_returncode()
        return result

    def pids(self) -> Iterator[int]:
        """The processes that live in the namespace."""
        try:
            ours = self.path.stat()
        except FileNotFoundError:
            return
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                theirs = (entry / "ns/net").stat()
            except OSError:  # it ended meanwhile
                continue
            if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino):
                yield int(entry.name)

    @_inside
    def add_bridge(self, name: str) -> None:
        with netlink(f"add the bridge {name}") as ip:
            ip.link("add", ifname=name, kind="bridge")
            ip.link("set", index=index_of(ip, name), state="up")

    @_inside
    def add_veth(self, name: str, peer: "Namespace", peer_name: str, mtu: int = 1500) -> None:
        """A pair of devices, one here and one in the peer namespace, both up."""
        with netlink(f"add the veth {name}") as ip, open(peer.path, "rb") as peer_file:
            end = {"ifname": peer_name, "net_ns_fd": peer_file.fileno(), "mtu": mtu}
            ip.link("add", ifname=name, kind="veth", mtu=mtu, peer=end)
        self.set_link(name, state="up")
        peer.set_link(peer_name, state="up")

    @_inside
    def set_link(self, name: str, *, master: str | None = None, **attributes: Any) -> None:
        """``master`` is the bridge to join; attributes as for ``ip link set``: state, mtu."""
        with netlink(f"set up {name}") as ip:
            if master is not None:
                attributes["master"] = index_of(ip, master)
            ip.link("set", index=index_of(ip, name), **attributes)

    @_inside
    def delete_link(self, name: str) -> None:
        with netlink(f"delete {name}") as ip:
            ip.link("del", index=index_of(ip, name))

    @_inside
    def add_address(self, name: str, address: IPv4Interface) -> None:
        with netlink(f"add {address} to {name}") as ip:
            ip.addr(
                "add",
                index=index_of(ip, name),
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
                broadcast=str(address.network.broadcast_address),
            )

    @_inside
    def add_route(
        self,
        network: IPv4Network,
        via: IPv4Address | None = None,
        device: str | None = None,
        **attributes: Any,
    ) -> None:
        """Through a gateway or straight into a device; 0.0.0.0/0 is the default route."""
        with netlink(f"add the route to {network}") as ip:
            if via is not None:
                attributes["gateway"] = str(via)
            if device is not None:
                attributes["oif"] = index_of(ip, device)
            ip.route("add", dst=str(network), **attributes)

    def sysctl(self, key: str, value: object) -> None:
        """``key`` as a path below /proc/sys/net, for example ``ipv4/ip_forward``."""
        self.call(Path("/proc/sys/net", key).write_text, str(value))


def popen(argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """A child process that is killed when this process ends, however it ends."""
    wrapped = ("setpriv", "--pdeathsig", "KILL", "--", *argv)
    return uninterrupted(lambda: subprocess.Popen(wrapped, **options))


def freeze(process: subprocess.Popen[Any]) -> None:
    """Stop a child process (SIGSTOP). Returns when the last of its threads has stopped, which may
    be some time after the signal was sent, or when it has ended.
    """
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)


def uninterrupted(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of the function. Where Ctrl-C interrupts the caller, the function still runs to
    its end; settle() returns after that.
    """
    return _worker.submit(function, *args, **kwargs).result()


def settle() -> None:
    """Returns when all functions passed to ``uninterrupted`` have ended, even if their callers were
    interrupted."""
    uninterrupted(lambda: None)


def named(prefix: str) -> list[Namespace]:
    """The namespaces whose name starts with the prefix."""
    names = os.listdir(RUN_DIR) if RUN_DIR.is_dir() else []
    return [Namespace(name) for name in sorted(names) if name.startswith(prefix)]
