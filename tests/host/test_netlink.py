"""The kernel's refusals become sentences, and what is short for a moment is waited for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flannel_udp.host.netns import Namespace


def test_missing_rights_are_one_sentence(namespace: Namespace) -> None:
    program = (
        "from flannel_udp.host import kernel_routes\n"
        "from flannel_udp.errors import DeviceError\n"
        "from ipaddress import ip_network\n"
        "try: kernel_routes.add_blackhole(ip_network('10.1.5.0/24'))\n"
        "except DeviceError as error: print(error)\n"
    )
    drop = ("setpriv", "--inh-caps=-net_admin", "--bounding-set=-net_admin")
    repository = Path(__file__).parents[2]
    result = namespace.run(
        [*drop, sys.executable, "-c", program], cwd=repository, stderr=subprocess.STDOUT
    )
    assert result.stdout == (
        "cannot add the blackhole route for 10.1.5.0/24: not permitted; "
        "run as root (CAP_NET_ADMIN)\n"
    )


# Leaves the process so many descriptors, and all of them again after that many seconds.
SHORT_OF_DESCRIPTORS = """
import os, resource, sys, threading
from flannel_udp.host import interfaces
from flannel_udp.errors import ShortageError
spare, seconds = int(sys.argv[1]), float(sys.argv[2])
print(*interfaces.own_addresses())
ends = resource.getrlimit(resource.RLIMIT_NOFILE)
filled = [os.dup(0) for _ in range(64)]  # no number below the last one is free
resource.setrlimit(resource.RLIMIT_NOFILE, (filled[-1] + 1 + spare, ends[1]))
threading.Timer(seconds, resource.setrlimit, (resource.RLIMIT_NOFILE, ends)).start()
try: print(*interfaces.own_addresses())
except ShortageError as error: print(error)
"""


@pytest.mark.parametrize("spare", range(6))
@pytest.mark.parametrize("lasts", [False, True])
def test_missing_descriptors_are_waited_for_and_leave_no_traceback(
    namespace: Namespace, spare: int, lasts: bool
) -> None:
    seconds = "4" if lasts else "0.3"
    result = namespace.run(
        [sys.executable, "-c", SHORT_OF_DESCRIPTORS, str(spare), seconds],
        cwd=Path(__file__).parents[2],
        stderr=subprocess.STDOUT,
        check=True,
    )
    first, *more = result.stdout.splitlines()
    assert first == "127.0.0.1"
    suffices = not lasts or spare == 5
    sentence = "cannot list the addresses: Too many open files; raise LimitNOFILE (ulimit -n) if"
    assert more == [first if suffices else f"{sentence} that lasts"]
