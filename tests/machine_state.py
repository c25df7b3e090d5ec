"""What tests could leave on the machine they run on, compared before and after the run.

A state is a set of lines, such as ``sysctl net/ipv4/ip_forward = 1``.
"""

from __future__ import annotations

import getpass
import os
import re
import stat
import subprocess
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from flannel_udp.host import netns
from flannel_udp.lab import record

LEFT_AFTER = 20.0  # seconds: what other programs make and remove in that time is not from the tests

_UNCHANGED = ("/etc", "/opt", "/usr/local")
# The machine's own services, and the lock of every iptables, which stays.
_VOLATILE = ("lock", "log", "mount", "systemd", "udev", "user", "utmp", "xtables.lock")
# The kernel changes these itself.
_ADJUSTED = ("kernel/ns_last_pid", "kernel/perf_event_max_sample_rate")
_COMMANDS = {
    "link": "ip -o link show",
    "address": "ip -o address show",
    "route": "ip -o route show table all",
    "rule": "ip -o rule show",
    "iptables": "iptables-save",
    "iptables-legacy": "iptables-legacy-save",
    "ip6tables-legacy": "ip6tables-legacy-save",
    "nftables": "nft --stateless list ruleset",
}
# Counters, times and states, which change by themselves; and tables without a rule, which come with
# a module of the kernel.
_CHANGING = re.compile(
    r"#.*|\[\d+:\d+\]|\*.*|COMMIT|:\w+ ACCEPT.*"
    r"|(expires|valid_lft|preferred_lft) \S+|state [A-Z]+|<[A-Z_,-]+>"
)

# Without the sanitizer that tests may run under: it finds faults of ip(8), too.
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def use_own_temporary_directory() -> None:
    """For this process and those that it starts: other programs change /tmp at any time."""
    directory = tempfile.mkdtemp(prefix="t-")  # short: paths of sockets have 107 bytes at most
    os.chmod(directory, 0o1777)
    os.environ["TMPDIR"] = tempfile.tempdir = directory


def read() -> frozenset[str]:
    """The state now. What this user may not read is missing."""
    return frozenset([*_files(), *_names(), *_settings(), *_network()])


def left_since(before: frozenset[str]) -> list[str]:
    """How the state differs for good from that one, a line each: ``+`` is new, ``-`` is gone."""
    deadline = time.monotonic() + LEFT_AFTER
    left = differences(before, read())
    while left and time.monotonic() < deadline:
        time.sleep(0.5)
        left &= differences(before, read())
    return sorted(left, key=lambda line: line[2:])


def differences(before: frozenset[str], now: frozenset[str]) -> set[str]:
    known = {_key(line) for line in before}
    # A module of the kernel brings new settings, and other programs remove what is theirs.
    new = {f"+ {line}" for line in now - before if _key(line) in known or not _is("sysctl", line)}
    gone = {f"- {line}" for line in before - now if not _is("entry", line)}
    return new | gone


def _is(kind: str, line: str) -> bool:
    return line.startswith(f"{kind} ")


def _key(line: str) -> str:
    return line.partition(" = ")[0]


def _files() -> Iterator[str]:
    for top in _UNCHANGED:
        for folder, folders, names in os.walk(top):
            if "__pycache__" in folders:
                folders.remove("__pycache__")
            for name in (*folders, *names):
                path = os.path.join(folder, name)
                with suppress(OSError):  # another program has just removed it
                    yield _file(path)


def _file(path: str) -> str:
    found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode):
        return f"symlink {path} {os.readlink(path)}"
    line = f"file {path} mode {found.st_mode:o} of {found.st_uid}:{found.st_gid}"
    if not stat.S_ISREG(found.st_mode):
        return line
    if found.st_size > 100_000:
        return f"{line}, {found.st_size} bytes from {time.ctime(found.st_mtime)}"
    # DHCP clients write the same /etc/resolv.conf again and again.
    return f"{line}, {found.st_size} bytes, checksum {zlib.crc32(Path(path).read_bytes()):08x}"


def _names() -> Iterator[str]:
    """Files in directories where other programs change theirs, without those of living labs."""
    for entry in os.listdir("/var/lib"):
        yield f"entry /var/lib/{entry}"
    living = tuple(_names_of_living_labs())
    temporary = tempfile.gettempdir()
    for entry in os.listdir(temporary):
        if entry != f"pytest-of-{getpass.getuser()}":  # a failed test leaves its files there
            yield f"entry {temporary}/{entry}"
    for folder, folders, names in os.walk("/run"):
        if folder == "/run":
            folders[:] = [name for name in folders if name not in _VOLATILE]
            names = [name for name in names if name not in _VOLATILE]
        yield from (f"entry {folder}/{name}" for name in names if not name.startswith(living))


def _names_of_living_labs() -> Iterator[str]:
    """How the names of their files begin: another run of the tests may use them."""
    for lab in record.read_all():
        if lab.is_alive():
            yield from (lab.prefix, lab.path.name, Path(lab.directory).name)
            for namespace in netns.named(lab.prefix):
                with suppress(FileNotFoundError):
                    yield f"net-{namespace.path.stat().st_ino}-"  # its locks


def _settings() -> Iterator[str]:
    """The sysctls that can be written; the others are counters."""
    for folder, _, names in os.walk("/proc/sys"):
        for name in names:
            path = Path(folder, name)
            key = str(path.relative_to("/proc/sys"))
            with suppress(OSError):  # it can only be written, or its device is gone
                if path.stat().st_mode & stat.S_IWUSR and key not in _ADJUSTED:
                    yield f"sysctl {key} = {path.read_text().strip()}"


def _network() -> Iterator[str]:
    for kind, command in _COMMANDS.items():
        try:
            done = subprocess.run(
                command.split(), env=_ENVIRONMENT, capture_output=True, text=True, timeout=60
            )
        except FileNotFoundError:
            continue
        for line in done.stdout.splitlines():
            kept = " ".join(_CHANGING.sub("", line).split())
            if kept and "temporary" not in kept:  # IPv6 addresses that the kernel makes daily
                yield f"{kind} {kept}"
