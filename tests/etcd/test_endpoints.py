from __future__ import annotations

import pytest

from flannel_udp.errors import UsageError
from flannel_udp.etcd.endpoints import Endpoint, parse_endpoints


def test_the_scheme_decides_on_tls() -> None:
    assert parse_endpoints(["http://10.0.0.1:2379", "https://etcd.example:4001/"]) == (
        Endpoint("http://10.0.0.1:2379", "10.0.0.1:2379", False),
        Endpoint("https://etcd.example:4001", "etcd.example:4001", True),
    )


def test_without_a_scheme_the_certificate_flags_decide() -> None:
    assert not parse_endpoints(["localhost:2379"])[0].tls
    assert parse_endpoints(["localhost:2379"], default_tls=True)[0].tls


def test_ipv6_keeps_its_brackets() -> None:
    assert parse_endpoints(["http://[fd00::1]:2379"])[0].target == "[fd00::1]:2379"


def test_repeats_and_spaces_are_dropped() -> None:
    assert len(parse_endpoints([" http://a:1", "http://a:1/"])) == 1


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://",
        "http://host",
        "http://:2379",
        "http://host:port",
        "http://host:70000",
        "http://host:0",
        "http://[fd00::1:2379",
        "unix:///run/etcd.sock",
        "ftp://host:2379",
        "http://host:2379/v3",
        "http://host:2379?x=1",
        "http://a:1 http://b:1",
    ],
)
def test_anything_else_is_refused_by_name(url: str) -> None:
    with pytest.raises(UsageError, match="--etcd-endpoints"):
        parse_endpoints([url])


def test_no_endpoint_is_refused() -> None:
    with pytest.raises(UsageError, match="empty"):
        parse_endpoints([])


def test_a_password_in_a_url_is_not_repeated() -> None:
    with pytest.raises(UsageError, match="--etcd-password") as caught:
        parse_endpoints(["http://me:hunter2@host:2379"])
    assert "hunter2" not in str(caught.value)
