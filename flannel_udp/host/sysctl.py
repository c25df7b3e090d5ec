"""The kernel's network settings in /proc/sys/net."""

import errno
from pathlib import Path

from flannel_udp.errors import DeviceError

_SYSCTLS = Path("/proc/sys/net")


def write(path: str, value: str, *, optional: bool = False) -> None:
    """``path`` is below /proc/sys/net. ``optional``: a missing entry is fine (a kernel without
    IPv6). Raises DeviceError."""
    try:
        (_SYSCTLS / path).write_text(value)
    except OSError as error:
        if optional and error.errno == errno.ENOENT:
            return
        raise DeviceError(
            f"cannot write {value} to {_SYSCTLS / path}: {error.strerror};"
            " run as root with a writable /proc/sys"
        ) from None


def ip_forward_enabled() -> bool:
    """Whether the kernel routes between interfaces (``net.ipv4.ip_forward``)."""
    return (_SYSCTLS / "ipv4/ip_forward").read_text().strip() == "1"


def bridged_packets_meet_iptables() -> bool | None:
    """``net.bridge.bridge-nf-call-iptables``; None where the module br_netfilter is missing."""
    try:
        return (_SYSCTLS / "bridge/bridge-nf-call-iptables").read_text().strip() == "1"
    except FileNotFoundError:
        return None
