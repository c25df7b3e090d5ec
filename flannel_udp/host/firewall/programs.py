"""Finding and running the programs that write firewall rules."""

import os
import shutil
import subprocess
from collections.abc import Iterable

from flannel_udp.errors import FirewallError

_PATIENCE = 30.0  # seconds for one run of a program: a host may have very many rules
_SYSTEM_PATH = "/usr/sbin:/sbin"  # some services run without these on PATH
_PACKAGES = {"nft": "nftables"}


def which(program: str) -> str | None:
    """The program's path; None if it is not installed."""
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_PATH}")


def are_installed(programs: Iterable[str]) -> bool:
    return all(map(which, programs))


def find(program: str) -> str:
    """The program's path. Raises FirewallError if it is not installed."""
    if found := which(program):
        return found
    raise FirewallError(
        f"cannot write firewall rules: {program} is not installed; apt-get install"
        f" {_PACKAGES.get(program, 'iptables')}, or start without --ip-masq and with"
        " --iptables-forward-rules=false"
    )


def run(command: list[str], feed: str = "") -> str:
    """What the program prints when it reads ``feed``. Raises FirewallError.

    Comments of other programs' rules may be in any encoding: undecodable bytes are surrogates.
    """
    program = os.path.basename(command[0])
    try:
        result = subprocess.run(
            command,
            input=feed.encode(errors="surrogateescape"),
            capture_output=True,
            timeout=_PATIENCE,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        raise FirewallError(
            f"cannot write firewall rules: {program} took longer than {_PATIENCE:g} seconds;"
            " look for a program that holds /run/xtables.lock"
        ) from None
    except OSError as error:
        raise FirewallError(
            f"cannot write firewall rules: {command[0]} does not start: {error.strerror};"
            " install it anew"
        ) from None
    if result.returncode:
        lines = result.stderr.decode(errors="backslashreplace").strip().splitlines()
        reason = next(iter(lines), f"exit code {result.returncode}")
        raise FirewallError(
            f"cannot write firewall rules: {program} says '{reason}'; it needs CAP_NET_ADMIN and"
            " CAP_NET_RAW, and a kernel with netfilter"
        )
    return result.stdout.decode(errors="surrogateescape")
