"""``mk-docker-opts``: docker's options for the subnet in subnet.env, as flannel's script writes."""

import argparse
import os
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path

from flannel_udp.errors import FlannelError, SubnetFileError, UsageError
from flannel_udp.host.subnet_env import BOOLEANS, NAME, parse_value, read_variables, write_file
from flannel_udp.logs import complain


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    try:
        _run(parse_arguments(argv))
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
        if masq not in BOOLEANS:
            raise SubnetFileError(f"FLANNEL_IPMASQ is {masq[:40]!r}; it must be true or false")
        docker_masquerades = not BOOLEANS[masq]  # exactly one of the two must masquerade
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


def _run(arguments: argparse.Namespace) -> None:
    variables = {**os.environ, **(read_variables(arguments.f) or {})}
    both = not arguments.i and not arguments.c
    text = docker_options(
        variables,
        key=arguments.k,
        individual=arguments.i or both,
        combined=arguments.c or both,
        ip_masq=not arguments.m,
    )
    if not variables.get("FLANNEL_SUBNET"):
        write_file(arguments.d, text)
        return
    subnet = parse_value(arguments.f, variables, "FLANNEL_SUBNET", IPv4Interface).network
    network = None
    if variables.get("FLANNEL_NETWORK"):  # absent where an old flannel wrote the file
        network = parse_value(arguments.f, variables, "FLANNEL_NETWORK", IPv4Network)
    write_file(arguments.d, text)  # before the check, as flannel's script does
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


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Raises UsageError, or SystemExit from argparse."""
    arguments = parser().parse_args(argv)
    if not NAME.fullmatch(arguments.k):
        raise UsageError(f"-k {arguments.k!r} is not the name of an environment variable")
    return arguments
