"""subnet.env: the file from which other programs learn this host's subnet."""

import contextlib
import os
import re
import stat
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import TypeVar

from flannel_udp.errors import SubnetFileError

_T = TypeVar("_T")
BOOLEANS = {"true": True, "false": False}
NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class SubnetEnv:
    """The content of subnet.env; ``mtu`` is the tunnel's, in bytes.

    ``subnet_with_gateway`` is the subnet's first usable address with its length (10.1.5.1/24).
    """

    network: IPv4Network
    subnet_with_gateway: IPv4Interface
    mtu: int
    ip_masq: bool


@dataclass(frozen=True, slots=True)
class Previous:
    """The subnet of an earlier run of whichever program and version; ``network`` is None if the
    file does not name it."""

    subnet: IPv4Network
    network: IPv4Network | None


def read_previous(path: Path) -> Previous | None:
    """The subnet an earlier run had, or None where there is no file. Like flannel, it needs no
    other variable.

    Raises SubnetFileError for a file that cannot be read, or has no subnet or a bad network.
    """
    variables = read_variables(path)
    if variables is None:
        return None
    subnet = parse_value(path, variables, "FLANNEL_SUBNET", IPv4Interface).network
    if not variables.get("FLANNEL_NETWORK"):
        return Previous(subnet, None)
    return Previous(subnet, parse_value(path, variables, "FLANNEL_NETWORK", IPv4Network))


def read(path: Path) -> SubnetEnv | None:
    """What this program wrote, or None where there is no file. Ignores other variables.

    Raises SubnetFileError for a file that cannot be read or lacks one of the four variables.
    """
    variables = read_variables(path)
    if variables is None:
        return None
    return SubnetEnv(
        network=parse_value(path, variables, "FLANNEL_NETWORK", IPv4Network),
        subnet_with_gateway=parse_value(path, variables, "FLANNEL_SUBNET", IPv4Interface),
        mtu=parse_value(path, variables, "FLANNEL_MTU", int),
        ip_masq=parse_value(path, variables, "FLANNEL_IPMASQ", BOOLEANS.__getitem__),
    )


def write(path: Path, env: SubnetEnv) -> None:
    """Replace the file at once, readable by all; raises SubnetFileError."""
    write_file(
        path,
        f"FLANNEL_NETWORK={env.network}\n"
        f"FLANNEL_SUBNET={env.subnet_with_gateway}\n"
        f"FLANNEL_MTU={env.mtu}\n"
        f"FLANNEL_IPMASQ={str(env.ip_masq).lower()}\n",
    )


def parse_value(
    path: Path, variables: Mapping[str, str], name: str, convert: Callable[[str], _T]
) -> _T:
    """The variable's value; ``path`` is for the sentence. Raises SubnetFileError."""
    if name not in variables:
        raise SubnetFileError(f"{path} has no {name}: delete the file if it is stale")
    try:
        return convert(variables[name])
    except (ValueError, KeyError):
        raise SubnetFileError(
            f"{path} has {name}={variables[name][:40]!r}, which cannot be right:"
            " delete the file if it is stale"
        ) from None


def read_variables(path: Path) -> dict[str, str] | None:
    """The ``NAME=value`` lines of a file that shells source; None where there is no file.

    Raises SubnetFileError.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SubnetFileError(f"cannot read {path}: {error.strerror}") from None
    variables = {}
    for line in text.splitlines():
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if equals and NAME.fullmatch(name):
            quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
            variables[name] = value[1:-1] if quoted else value
    return variables


def write_file(path: Path, text: str) -> None:
    """Replace a file by rename, 0644 in directories of 0755 whatever the umask.

    A device or pipe (``-d /dev/stdout``) is written to instead. Raises SubnetFileError.
    """
    try:
        if _is_device_or_pipe(path):
            path.write_text(text, encoding="utf-8", errors="surrogateescape")
        else:
            _replace_file(path.resolve(), text)
    except OSError as error:
        raise SubnetFileError(f"cannot write {path}: {error.strerror}") from None


def _is_device_or_pipe(path: Path) -> bool:
    """Whether the path exists and is no regular file. Raises OSError."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return False


def _replace_file(path: Path, text: str) -> None:
    for parent in reversed(path.parents):
        if not parent.exists():
            parent.mkdir(exist_ok=True)
            parent.chmod(0o755)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            os.fchmod(descriptor, 0o644)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
