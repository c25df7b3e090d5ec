from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_udp.etcd.faults import CLOSED, NO_ANSWER, Fault, Kind, explain, fault_of


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        ("UNAVAILABLE", "ipv4:127.0.0.1:4: Connection refused", Kind.UNREACHABLE),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", Kind.UNREACHABLE),
        ("UNAVAILABLE", "etcdserver: no leader", Kind.UNREACHABLE),
        ("UNAVAILABLE", "etcdserver: leader changed", Kind.UNREACHABLE),
        ("INVALID_ARGUMENT", "etcdserver: revision of auth store is old", Kind.STALE_LOGIN),
        ("UNAUTHENTICATED", "etcdserver: invalid auth token", Kind.STALE_LOGIN),
        ("PERMISSION_DENIED", "etcdserver: permission denied", Kind.REFUSED),
        ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded", Kind.REFUSED),
        ("NOT_FOUND", "etcdserver: requested lease not found", Kind.LEASE_GONE),
        ("OUT_OF_RANGE", "etcdserver: mvcc: required revision has been compacted", Kind.COMPACTED),
        (
            "OUT_OF_RANGE",
            "etcdserver: mvcc: required revision is a future revision",
            Kind.FUTURE_REVISION,
        ),
        ("INVALID_ARGUMENT", "something new", Kind.REFUSED),
        ("UNAVAILABLE", "something new", Kind.UNREACHABLE),
    ],
)
def test_the_kind_decides_what_the_caller_does(code: str, text: str, kind: Kind) -> None:
    assert fault_of(code, text).kind is kind


@pytest.mark.parametrize(
    "text", ["Failed to connect to remote host: connect() timed out", "tcp handshaker shutdown"]
)
def test_packets_that_a_firewall_drops_are_no_answer(text: str) -> None:
    text = f"failed to connect to all addresses; last error: UNKNOWN: ipv4:172.30.9.2:2379: {text}"
    assert fault_of("UNAVAILABLE", text) == NO_ANSWER


@pytest.mark.parametrize(
    "how", ["recvmsg:Connection reset by peer (104)", "sendmsg: Broken pipe (32)"]
)
def test_a_connection_that_broke_was_closed(how: str) -> None:
    assert fault_of("UNAVAILABLE", f"Stream removed ({how})") == CLOSED


@given(st.integers(1, 65535), st.integers(1, 65535))
def test_what_varies_from_try_to_try_is_left_out(port: int, other: int) -> None:
    text = "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.1:{}: {}"
    for reason in ("Connection refused", "No route to host", "some new reason"):
        first = fault_of("UNAVAILABLE", text.format(port, reason))
        assert first == fault_of("UNAVAILABLE", text.format(other, reason))


def test_an_unknown_text_of_etcd_is_passed_on() -> None:
    assert fault_of("INTERNAL", "etcdserver: too many requests").cause == (
        "etcdserver: too many requests"
    )


def test_endpoints_with_one_cause_share_a_clause() -> None:
    refused = Fault(Kind.UNREACHABLE, "refused", "do this")
    silent = Fault(Kind.UNREACHABLE, "no answer", "do this")
    assert explain({"a": refused, "b": silent, "c": refused}) == (
        "etcd cannot be used: refused at a and c, no answer at b; do this"
    )
