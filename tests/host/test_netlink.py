"""The kernel's refusals become sentences."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
