"""What an operator changes in etcd, by the command line and against a real etcd."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from etcd_server import EtcdServer

from flannel_udp.cli import commands
from flannel_udp.cluster.operator import Cluster
from flannel_udp.errors import BackendTypeError, ClusterError, NetworkConfigError, UsageError
from flannel_udp.etcd.client import Etcd

CONFIG = '{"Network":"10.1.0.0/16","Backend":{"Type":"udp"}}'
VALUE = '{"PublicIP":"172.30.0.1","PublicIPv6":null}'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


class Operator:
    """Runs commands with a prefix of its own."""

    def __init__(self, server: EtcdServer) -> None:
        self.server = server
        self.prefix = f"/{uuid.uuid4().hex[:8]}/network"
        self.environ = {"FLANNELD_ETCD_ENDPOINTS": server.url, "FLANNELD_ETCD_PREFIX": self.prefix}

    def __call__(self, *argv: str) -> int:
        return commands.run(argv, self.environ)

    def get(self, name: str) -> str:
        return self.server.get(f"{self.prefix}/{name}")

    def put(self, name: str, value: str, *, lease: str | None = None) -> None:
        self.server.put(f"{self.prefix}/{name}", value, lease=lease)


@pytest.fixture
def operator(server: EtcdServer) -> Operator:
    return Operator(server)


def test_a_config_is_set_shown_and_changed(
    operator: Operator, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ClusterError, match="there is no network config at"):
        operator("config", "show")
    assert operator("config", "set", CONFIG) == 0
    assert operator.get("config") == CONFIG
    capsys.readouterr()
    assert operator("config", "show") == 0
    assert capsys.readouterr().out == (
        f"{CONFIG}\nNetwork 10.1.0.0/16, each host a /24 from 10.1.1.0 to 10.1.255.0\n"
        "UDP port 8285, MTU as the interface allows, firewall rules by iptables\n"
    )
    operator("config", "set", '{"Network":"10.2.0.0/16","Backend":{"Type":"udp","MTU":1400}}')
    operator("config", "validate")
    assert "MTU at most 1400" in capsys.readouterr().out


def test_the_config_is_read_from_stdin(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(CONFIG))
    operator("config", "set", "-")
    assert operator.get("config") == CONFIG


def test_a_bad_config_never_reaches_etcd(operator: Operator) -> None:
    operator("config", "set", CONFIG)
    for bad in ('{"Network":"10.1.0.0/30"}', "{", ""):
        with pytest.raises(NetworkConfigError):
            operator("config", "set", bad)
        with pytest.raises(NetworkConfigError):
            operator("config", "validate", bad)
    with pytest.raises(BackendTypeError):
        operator("config", "set", '{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}')
    assert operator.get("config") == CONFIG


def test_validate_needs_no_etcd(capsys: pytest.CaptureFixture[str]) -> None:
    environ = {"FLANNELD_ETCD_ENDPOINTS": "http://127.0.0.1:1"}
    assert commands.run(["config", "validate", CONFIG], environ) == 0
    assert "Network 10.1.0.0/16" in capsys.readouterr().out


def test_a_config_that_costs_hosts_their_subnets_needs_force(operator: Operator) -> None:
    operator("config", "set", CONFIG)
    operator.put("subnets/10.1.5.0-24", VALUE)
    other = '{"Network":"10.2.0.0/16"}'
    with pytest.raises(ClusterError, match=r"1 leases do not fit .*10\.1\.5\.0/24.*--force"):
        operator("config", "set", other)
    assert operator.get("config") == CONFIG
    operator("config", "set", '{"Network":"10.1.0.0/16","Backend":{"Type":"udp","MTU":1400}}')
    operator("config", "set", other, "--force")
    assert operator.get("config") == other


def test_a_config_is_created_only_where_none_is(operator: Operator) -> None:
    etcd = Etcd([operator.server.url])
    cluster = Cluster(etcd, operator.prefix)
    assert cluster.create_config(CONFIG)
    assert not cluster.create_config('{"Network":"10.2.0.0/16"}')
    assert operator.get("config") == CONFIG
    etcd.close()


def test_all_leases_and_unreadable_keys_are_listed(
    operator: Operator, capsys: pytest.CaptureFixture[str]
) -> None:
    operator.put("subnets/10.1.50.0-24", VALUE, lease=operator.server.grant(600))
    operator.put("subnets/10.1.6.0-24", '{"PublicIP":"172.30.0.2","BackendType":"vxlan"}')
    operator.put("subnets/junk", "x")
    assert operator("lease", "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:2]] == [
        ["10.1.6.0/24", "172.30.0.2", "reservation", "vxlan"],
        ["10.1.50.0/24", "172.30.0.1", "lease", "udp"],
    ]
    assert lines[2].startswith('unreadable: the lease key "junk" is not a subnet')
    operator("lease", "list", "--json")
    listed = json.loads(capsys.readouterr().out)
    assert [each.get("reservation") for each in listed] == [True, False, None]


def test_a_subnet_is_reserved_for_a_host_and_a_lease_becomes_a_reservation(
    operator: Operator,
) -> None:
    operator("config", "set", CONFIG)
    operator("lease", "reserve", "10.1.7.0/24", "172.30.0.7")
    assert operator.get("subnets/10.1.7.0-24") == '{"PublicIP":"172.30.0.7","PublicIPv6":null}'
    lease = operator.server.grant(600)
    operator.put("subnets/10.1.5.0-24", VALUE, lease=lease)
    operator("lease", "reserve", "10.1.5.0/24", "172.30.0.1")
    operator.server.etcdctl("lease", "revoke", lease)
    assert operator.get("subnets/10.1.5.0-24") == VALUE


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["10.1.5.0/24", "172.30.0.9"], "10.1.5.0/24 is not free: "),
        (["10.1.9.0/24", "172.30.0.1"], "172.30.0.1 has 10.1.5.0/24 already: revoke that first"),
        (["10.1.8.0/24", "172.30.0.9"], "belongs to nobody who can be read"),
        (["10.1.0.0/24", "172.30.0.9"], "does not fit the network config: a host gets a /24 from"),
        (["10.1.9.0/25", "172.30.0.9"], "does not fit the network config"),
    ],
)
def test_what_cannot_be_reserved_is_refused(
    operator: Operator, words: list[str], sentence: str
) -> None:
    operator("config", "set", CONFIG)
    operator.put("subnets/10.1.5.0-24", VALUE)
    operator.put("subnets/10.1.8.0-24", "unreadable")
    with pytest.raises(ClusterError) as caught:
        operator("lease", "reserve", *words)
    assert sentence in str(caught.value)
    assert operator.get("subnets/10.1.5.0-24") == VALUE


def test_a_lease_is_revoked_also_an_unreadable_one(
    operator: Operator, capsys: pytest.CaptureFixture[str]
) -> None:
    operator.put("subnets/10.1.5.0-24", VALUE)
    operator.put("subnets/10.1.8.0-24", "unreadable")
    assert operator("lease", "revoke", "10.1.5.0/24") == 0
    assert "revoked 10.1.5.0/24 of 172.30.0.1" in capsys.readouterr().out
    operator("lease", "revoke", "10.1.8.0/24")
    assert operator.server.etcdctl("get", "--prefix", f"{operator.prefix}/") == ""
    with pytest.raises(ClusterError, match="nobody has 10.1.5.0/24"):  # noqa: RUF043
        operator("lease", "revoke", "10.1.5.0/24")


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["config", "set"], "config set needs the config"),
        (["config", "show", CONFIG], "config show takes no config"),
        (["config", "shwo"], "invalid choice"),
        (["config"], "required: action"),
        (["lease", "revoke"], "write flannel-udp lease revoke SUBNET"),
        (["lease", "reserve", "10.1.5.0/24"], "lease reserve SUBNET PUBLIC_IP"),
        (["lease", "revoke", "10.1.5.1/24"], "10.1.5.1/24 has host bits set"),
        (["lease", "reserve", "10.1.5.0/24", "host"], '"host" is no IPv4 address'),
    ],
)
def test_a_mistake_is_one_sentence(operator: Operator, argv: list[str], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        operator(*argv)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_certificates_is_used(operator: Operator, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="--etcd-cafile"):
        operator("lease", "list", f"--etcd-cafile={tmp_path}/none.pem")
