"""Threads that only inform meet an error, and the daemon forwards on."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from etcd_server import wait_until
from faults import no_packet_lost
from instruments import HEALTH_FLAGS, health, log_lines
from restarts import takeovers

from flannel_udp.host.netns import Namespace
from flannel_udp.lab.lab import DEFAULT_CONFIG, Lab

BYSTANDERS = ("config-watch", "firewall", "handover", "health port", "pump-watch", "status socket")

# Python imports a module of this name at its start. The first run of each bystander's thread fails.
SITE_CUSTOMIZE = f"""
import errno, os
from flannel_udp.threads import Service

run = Service._run

def run_with_a_failure(self):
    serve, name, failures = self._serve, self._thread.name, []

    def fail_first():
        if name in {BYSTANDERS!r} and not failures:
            failures.append(name)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        serve()

    self._serve = fail_first
    run(self)

Service._run = run_with_a_failure
"""


def send_from_a_stranger(source: Namespace, address: str) -> None:
    source.run(["bash", "-c", f"echo strange > /dev/udp/{address}/8285"], check=True)


def test_the_daemon_forwards_on_after_an_error_of_each_bystander(
    make_lab: Callable[[Lab], Lab], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITE_CUSTOMIZE)
    lab = make_lab(
        Lab(
            2,
            daemon_args=(*HEALTH_FLAGS, "--iptables-resync=1"),
            daemon_env={"PYTHONPATH": str(tmp_path)},
            keeps_descriptors=True,
        )
    )
    host = lab.hosts[0]
    with no_packet_lost(lab.hosts):
        for name in BYSTANDERS:
            line = partial(log_lines, host, f"the thread {name} starts again", "Too many open")
            wait_until(line, f"the line about {name}")
            assert len(line()) == 1
        wait_until(lambda: health(host, "/readyz") == (200, "flanneld is ready"), "/readyz")
        assert host.status()["ready"]
        host.run(["iptables", "-D", "FORWARD", "-j", "FLANNEL-FWD"])
        host.run(["iptables", "-F", "FLANNEL-FWD"], check=True)
        wait_until(lambda: log_lines(host, "changed by another program: restored"), "the rules")
        changed = json.dumps({**DEFAULT_CONFIG, "SubnetMax": "10.1.200.0"})
        lab.etcdctl("put", f"{lab.prefix}/config", changed)
        wait_until(lambda: log_lines(host, "SubnetMax is 10.1.200.0"), "the changed config")
        send_from_a_stranger(lab.switch, str(host.address))
        wait_until(lambda: log_lines(host, "refused", "172.30.0.254"), "the refused datagram")
    host.kill_daemon()
    host.start_daemon()
    assert takeovers(host) == 1
