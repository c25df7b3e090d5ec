"""subnet.env, which tells other programs about this host's subnet, and docker's options from it."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import stat
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import TypeVar

from flannel_udp.errors import FlannelError, SubnetFileError, UsageError
from flannel_udp.logs import complain

_T = TypeVar("_T")
_FLAGS = {"true": True, "false": False}
_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")


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
    """What an earlier run, of whichever program and version, tells of the subnet it had.

    Without ``network`` it does not tell of which network it was.
    """

    subnet: IPv4Network
    network: IPv4Network | None


def read_previous(path: Path) -> Previous | None:
    """The subnet an earlier run had, or None where there is no file; as flannel, it needs no more.

    Raises SubnetFileError for a file that cannot be read, or has no subnet or a bad network.
    """
    variables = _read_variables(path)
    if variables is None:
        return None
    subnet = _parse(path, variables, "FLANNEL_SUBNET", IPv4Interface).network
    if not variables.get("FLANNEL_NETWORK"):
        return Previous(subnet, None)
    return Previous(subnet, _parse(path, variables, "FLANNEL_NETWORK", IPv4Network))


def read(path: Path) -> SubnetEnv | None:
    """What this program wrote, or None where there is no file; other variables are ignored.

    Raises SubnetFileError for a file that cannot be read or lacks one of the four variables.
    """
    variables = _read_variables(path)
    if variables is None:
        return None
    return SubnetEnv(
        network=_parse(path, variables, "FLANNEL_NETWORK", IPv4Network),
        subnet_with_gateway=_parse(path, variables, "FLANNEL_SUBNET", IPv4Interface),
        mtu=_parse(path, variables, "FLANNEL_MTU", int),
        ip_masq=_parse(path, variables, "FLANNEL_IPMASQ", _FLAGS.__getitem__),
    )


def write(path: Path, env: SubnetEnv) -> None:
    """Replace the file at once, readable by all; raises SubnetFileError."""
    _write_file(
        path,
        f"FLANNEL_NETWORK={env.network}\n"
        f"FLANNEL_SUBNET={env.subnet_with_gateway}\n"
        f"FLANNEL_MTU={env.mtu}\n"
        f"FLANNEL_IPMASQ={str(env.ip_masq).lower()}\n",
    )


def mk_docker_opts_main(argv: Sequence[str] | None = None) -> int:
    """flannel's mk-docker-opts.sh; returns the exit code."""
    try:
        _mk_docker_opts(_parse_arguments(argv))
    except FlannelError as error:
        complain("mk-docker-opts", error)
        return 1
    except SystemExit as stop:  # argparse has printed its help or its complaint
        return 1 if stop.code else 0
    return 0


def docker_options(
    variables: Mapping[str, str], *, key: str, individual: bool, combined: bool, ip_masq: bool
) -> str:
    """The lines that mk-docker-opts.sh writes, byte for byte.

    ``variables`` is the environment overlaid with subnet.env, as the script sees it after sourcing
    that file: ``DOCKER_OPT_*`` set by the operator are carried along, and an existing value of
    ``key`` comes in front. Raises SubnetFileError for a FLANNEL_IPMASQ other than true and false.
    """
    options = {name: value for name, value in variables.items() if name.startswith("DOCKER_OPT_")}
    if subnet := variables.get("FLANNEL_SUBNET"):
        options["DOCKER_OPT_BIP"] = f"--bip={subnet}"
    if mtu := variables.get("FLANNEL_MTU"):
        options["DOCKER_OPT_MTU"] = f"--mtu={mtu}"
    if ip_masq and (masq := variables.get("FLANNEL_IPMASQ")):
        if masq not in _FLAGS:
            raise SubnetFileError(f"FLANNEL_IPMASQ is {masq[:40]!r}; it must be true or false")
        docker_masquerades = not _FLAGS[masq]  # one of the two has to
        options["DOCKER_OPT_IPMASQ"] = f"--ip-masq={str(docker_masquerades).lower()}"
    lines = []
    value = variables.get(key, "")
    if value:
        value += " "
    for name in sorted(options):
        if individual:
            lines.append(f'{name}="{options[name]}"\n')
        value += f" {options[name]}"
    if combined:
        lines.append(f'{key}="{value}"\n')
    return "".join(lines)


def _mk_docker_opts(arguments: argparse.Namespace) -> None:
    variables = {**os.environ, **(_read_variables(arguments.f) or {})}
    both = not arguments.i and not arguments.c
    text = docker_options(
        variables,
        key=arguments.k,
        individual=arguments.i or both,
        combined=arguments.c or both,
        ip_masq=not arguments.m,
    )
    if not variables.get("FLANNEL_SUBNET"):
        _write_file(arguments.d, text)
        return
    subnet = _parse(arguments.f, variables, "FLANNEL_SUBNET", IPv4Interface).network
    network = None
    if variables.get("FLANNEL_NETWORK"):  # absent where an old flannel wrote the file
        network = _parse(arguments.f, variables, "FLANNEL_NETWORK", IPv4Network)
    _write_file(arguments.d, text)  # before the check, as flannel's script does
    _refuse_gateway_route(subnet, network)


def _refuse_gateway_route(subnet: IPv4Network, network: IPv4Network | None) -> None:
    from flannel_udp.host import kernel_routes  # pyroute2 takes long to import

    route = kernel_routes.gateway_route_covering(subnet, network)
    if route is not None:
        raise SubnetFileError(
            f"the routing table already sends {subnet} through a gateway ({route});"
            " delete that route, then try again"
        )


def parser() -> argparse.ArgumentParser:
    """The flags of mk-docker-opts, which are flannel's."""
    parser = argparse.ArgumentParser(
        prog="mk-docker-opts", description="Write docker's options for the subnet in subnet.env."
    )
    add = parser.add_argument
    add(
        "-f",
        metavar="FILE",
        type=Path,
        default=Path("/run/flannel/subnet.env"),
        help="read this (default: %(default)s); where it is missing, no options are written",
    )
    add(
        "-d",
        metavar="FILE",
        type=Path,
        default=Path("/run/docker_opts.env"),
        help="write this (default: %(default)s)",
    )
    add("-i", action="store_true", help="one variable for each option, such as DOCKER_OPT_MTU")
    add("-c", action="store_true", help="one variable for all (default: both -i and -c)")
    add(
        "-k",
        metavar="KEY",
        default="DOCKER_OPTS",
        help="name of the variable for all (default: %(default)s)",
    )
    add("-m", action="store_true", help="leave --ip-masq out, for old docker versions")
    return parser


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    arguments = parser().parse_args(argv)
    if not _NAME.fullmatch(arguments.k):
        raise UsageError(f"-k {arguments.k!r} is not the name of an environment variable")
    return arguments


def _parse(path: Path, variables: Mapping[str, str], name: str, convert: Callable[[str], _T]) -> _T:
    if name not in variables:
        raise SubnetFileError(f"{path} has no {name}: delete the file if it is stale")
    try:
        return convert(variables[name])
    except (ValueError, KeyError):
        raise SubnetFileError(
            f"{path} has {name}={variables[name][:40]!r}, which cannot be right:"
            " delete the file if it is stale"
        ) from None


def _read_variables(path: Path) -> dict[str, str] | None:
    """The ``NAME=value`` lines of a file that shells source; None where there is no file."""
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SubnetFileError(f"cannot read {path}: {error.strerror}") from None
    variables = {}
    for line in text.splitlines():
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if equals and _NAME.fullmatch(name):
            quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
            variables[name] = value[1:-1] if quoted else value
    return variables


def _write_file(path: Path, text: str) -> None:
    """Replace a file by rename, 0644 in directories of 0755 whatever the umask.

    A device or pipe (``-d /dev/stdout``) is written to instead.
    """
    try:
        if _is_no_file(path):
            path.write_text(text, encoding="utf-8", errors="surrogateescape")
        else:
            _replace_file(path.resolve(), text)
    except OSError as error:
        raise SubnetFileError(f"cannot write {path}: {error.strerror}") from None


def _is_no_file(path: Path) -> bool:
    """Whether something is there, and is no regular file. Raises OSError."""
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
