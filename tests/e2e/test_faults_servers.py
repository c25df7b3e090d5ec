"""Etcd clusters, logins and certificates that fail and recover, without loss of packets."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
from etcd_server import EXPIRED, EtcdServer, TlsFiles, etcd_cluster, make_tls_files, wait_until
from fault_timer import NOTICED_AT_ONCE, RECOVERY, timed_fault
from faults import (
    CONFIG,
    NOTICE_WITHIN,
    RESET,
    await_agreement,
    await_loss,
    await_new_lease,
    cut_off,
    state,
    succeeds,
)
from instruments import log_lines

from flannel_udp.lab.lab import UNDERLAY, Host, Lab

PREFIX = "/coreos.com/network"
ADDRESS = str(UNDERLAY.ip)
USER = ("--etcd-username=flannel", "--etcd-password=secret")


@pytest.fixture(scope="module")
def lab(network_rights: None) -> Iterator[Lab]:
    with Lab(hosts=2, start_daemons=False) as lab:
        yield lab


@contextmanager
def daemons(lab: Lab, server: EtcdServer, *flags: str) -> Iterator[list[Host]]:
    """The hosts, whose daemons use this server instead of the lab's."""
    server.put(f"{PREFIX}/config", json.dumps(CONFIG))
    for host in lab.hosts:
        host.log_path.unlink(missing_ok=True)
        host.start_daemon([f"--etcd-endpoints={server.url}", *flags], wait=False)
    for host in lab.hosts:
        host.wait_until_ready()
    await_agreement(lab.hosts, server.etcdctl, PREFIX)
    yield lab.hosts
    for host in lab.hosts:
        assert host.stop_daemon() == 0
        text = host.log_path.read_text()
        assert "Traceback" not in text
        assert "secret" not in text


def await_line(hosts: list[Host], *words: str) -> None:
    wait_until(lambda: all(log_lines(host, *words) for host in hosts), words[0], NOTICE_WITHIN)


def await_leader(member: EtcdServer) -> None:
    """Waits for an election; etcdctl may itself wait longer than the election takes."""
    written = partial(succeeds, member.etcdctl, "put", "/elsewhere", "")
    wait_until(written, "a leader", NOTICE_WITHIN)


def await_watching(hosts: list[Host]) -> None:
    wait_until(lambda: all(state(host) == "watching" for host in hosts), "the watches")


def tls_files(folder: Path, server_life: tuple[str, str] | None = None) -> TlsFiles:
    return make_tls_files(folder, f"IP:{ADDRESS}", server_life)


def test_loss_of_etcd_members_and_of_their_majority_is_survived(lab: Lab, tmp_path: Path) -> None:
    with etcd_cluster(tmp_path, netns=lab.switch, address=ADDRESS) as members:
        first, second, third = members
        endpoints = ",".join(member.url for member in members)
        with (
            daemons(lab, third, f"--etcd-endpoints={endpoints}") as hosts,
            timed_fault("majority of a cluster lost", hosts) as timer,
        ):
            first.kill()
            await_leader(third)
            timer.start()
            timer.expect_recovery(hosts, third.etcdctl, PREFIX, "without a member well")
            second.kill()
            timer.start()
            timer.expect_noticed(*hosts, within=NOTICED_AT_ONCE, what="no leader noticed")
            await_line(hosts, "the cluster has no leader")
            second.start()
            await_leader(third)
            timer.start()
            timer.expect_recovery(hosts, third.etcdctl, PREFIX, "majority")
            first.start()
            third.kill()
            await_leader(second)
            timer.start()
            timer.expect_recovery(hosts, second.etcdctl, PREFIX, "on other members well")


def test_expired_token_and_revoked_permission_are_survived(lab: Lab, tmp_path: Path) -> None:
    """User and password over TLS that is verified by the CA file alone."""
    files = tls_files(tmp_path / "tls")
    server = EtcdServer(
        tmp_path / "etcd",
        tls=files,
        netns=lab.switch,
        address=ADDRESS,
        extra=("--auth-token-ttl=1",),
    )
    with server:
        server.enable_auth("flannel", "secret", f"{PREFIX}/")
        flags = f"--etcd-cafile={files.ca}", *USER
        with (
            daemons(lab, server, *flags) as hosts,
            timed_fault("token expired, permission revoked and granted", hosts) as timer,
        ):
            time.sleep(2)  # the tokens are no longer valid
            with ExitStack() as cuts:
                for host in hosts:
                    cuts.enter_context(cut_off(host, RESET))
                # An open watch survives the expiry; the next call does not.
                server.put(f"{PREFIX}/config", json.dumps(CONFIG))
                timer.start()
                timer.expect_noticed(*hosts, within=NOTICED_AT_ONCE, what="cut noticed")
                logins = server.calls("Authenticate")
            timer.start()
            timer.expect("logged in", partial(await_watching, hosts), within=RECOVERY)
            assert server.calls("Authenticate") == logins + len(hosts)
            await_new_lease(hosts, server.etcdctl, PREFIX)
            server.etcdctl("user", "revoke-role", "flannel", "flannel")
            server.restart()
            timer.start()
            timer.expect_noticed(*hosts, within=NOTICED_AT_ONCE, what="permission missed")
            await_line(hosts, "permission denied", "--etcd-username")
            server.etcdctl("user", "grant-role", "flannel", "flannel")
            timer.start()
            timer.expect_recovery(hosts, server.etcdctl, PREFIX)


def test_changed_password_is_logged_and_works_when_restored(lab: Lab, tmp_path: Path) -> None:
    """User and password without TLS."""
    with EtcdServer(tmp_path, netns=lab.switch, address=ADDRESS) as server:
        server.enable_auth("flannel", "secret", f"{PREFIX}/")
        with daemons(lab, server, *USER) as hosts, timed_fault("password changed", hosts) as timer:
            server.etcdctl("user", "passwd", "flannel", "--interactive=false", stdin="other")
            server.restart()
            timer.start()
            timer.expect_noticed(*hosts, within=NOTICED_AT_ONCE)
            await_line(hosts, "the user name or the password is wrong")
            server.etcdctl("user", "passwd", "flannel", "--interactive=false", stdin="secret")
            timer.start()
            timer.expect_recovery(hosts, server.etcdctl, PREFIX)


def test_expired_certificate_is_logged_and_rotated_files_are_used(lab: Lab, tmp_path: Path) -> None:
    """Client and server have certificates. The server returns with an expired one, then with one of
    another authority, until our files are replaced too."""
    old, new = tls_files(tmp_path / "old"), tls_files(tmp_path / "new")
    ca, cert, key = (tmp_path / name for name in ("ca.pem", "client.pem", "client.key"))

    def install(files: TlsFiles) -> None:
        pairs = ((files.ca, ca), (files.client_cert, cert), (files.client_key, key))
        for source, target in pairs:
            shutil.copy(source, target)

    install(old)
    server = EtcdServer(
        tmp_path / "etcd", tls=old, client_cert_auth=True, netns=lab.switch, address=ADDRESS
    )
    flags = f"--etcd-cafile={ca}", f"--etcd-certfile={cert}", f"--etcd-keyfile={key}"
    with (
        server,
        daemons(lab, server, *flags) as hosts,
        timed_fault("certificate expired, authority exchanged", hosts) as timer,
    ):
        server.tls = tls_files(tmp_path / "expired", EXPIRED)
        server.restart()
        install(server.tls)  # else it would be an unknown authority
        await_line(hosts, "its TLS certificate has expired")
        server.tls = new
        server.restart()
        await_line(hosts, "not from an authority that is trusted here", "--etcd-cafile")
        await_loss(*hosts)
        install(new)
        timer.start()
        timer.expect_recovery(hosts, server.etcdctl, PREFIX)
        await_line(hosts, "the certificate files changed")
