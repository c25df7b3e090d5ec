"""The health server, asked over HTTP as probes ask it."""

from __future__ import annotations

import http.client
import logging
import os
import re
import socket
import struct
import time

import pytest
from etcd_server import wait_until

from flannel_udp.errors import DeviceError
from flannel_udp.observe.health import serve_health
from flannel_udp.observe.readiness import Readiness


def expose(accept: str) -> tuple[bytes, str]:
    return f"accepting {accept}".encode(), "text/metrics"


def get(port: int, path: str, address: str = "127.0.0.1") -> tuple[int, str]:
    connection = http.client.HTTPConnection(address, port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_health_and_readiness_answer_with_the_texts_of_flannel() -> None:
    readiness = Readiness()
    with serve_health("127.0.0.1", 0, readiness, expose) as port:
        assert get(port, "/healthz") == (200, "flanneld is running")
        assert get(port, "/readyz") == (503, "flanneld is not ready yet\nstarting")
        readiness.not_ready("etcd cannot be used")
        assert get(port, "/readyz") == (503, "flanneld is not ready yet\netcd cannot be used")
        readiness.ready()
        assert get(port, "/readyz") == (200, "flanneld is ready")
        readiness.ready(lambda: "etcd silent for 12 s")
        assert get(port, "/readyz") == (200, "flanneld is ready\netcd silent for 12 s")
        assert get(port, "/healthz") == (200, "flanneld is running")
        assert get(port, "/elsewhere") == (404, "see /healthz, /readyz and /metrics")
    with pytest.raises(ConnectionRefusedError):
        get(port, "/healthz")


def test_metrics_come_in_the_format_asked_for() -> None:
    with serve_health("127.0.0.1", 0, Readiness(), expose) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/metrics?x=1", headers={"Accept": "their-format"})
        answer = connection.getresponse()
        assert answer.getheader("Content-Type") == "text/metrics"
        assert answer.read() == b"accepting their-format"
        connection.close()


def test_health_listens_on_ipv6_too() -> None:
    with serve_health("::1", 0, Readiness(), expose) as port:
        assert get(port, "/healthz", "::1") == (200, "flanneld is running")


def test_a_taken_health_port_is_reported_in_one_sentence() -> None:
    with (
        serve_health("127.0.0.1", 0, Readiness(), expose) as port,
        pytest.raises(
            DeviceError, match=rf"port {port}: Address .* use by \w+, process .*--healthz-port"
        ),
        serve_health("127.0.0.1", port, Readiness(), expose),
    ):
        pass


def test_a_silent_client_delays_neither_others_nor_the_end() -> None:
    with serve_health("127.0.0.1", 0, Readiness(), expose) as port:
        silent = socket.create_connection(("127.0.0.1", port))
        began = time.monotonic()
        assert get(port, "/healthz")[0] == 200
    assert time.monotonic() - began < 2
    silent.close()


def test_a_probe_that_resets_is_logged_only_at_debug(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """As load balancers do: a connection whose end is a reset."""
    caplog.set_level(logging.DEBUG)
    with serve_health("127.0.0.1", 0, Readiness(), expose) as port:
        probe = socket.create_connection(("127.0.0.1", port))
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        probe.close()
        wait_until(lambda: "broke off: Connection reset" in caplog.text, "the reset")
        assert get(port, "/healthz")[0] == 200
    assert {record.levelname for record in caplog.records} == {"DEBUG"}
    assert capfd.readouterr().err == ""


def test_the_start_does_not_ask_dns(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object) -> str:
        raise AssertionError("asked DNS")

    monkeypatch.setattr(socket, "getfqdn", ask)
    monkeypatch.setattr(socket, "gethostbyaddr", ask)
    with serve_health("127.0.0.1", 0, Readiness(), expose) as port:
        assert get(port, "/healthz")[0] == 200


def test_a_patient_server_names_who_has_its_port_and_waits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    other = socket.create_server(("127.0.0.1", 0))
    port = other.getsockname()[1]
    with serve_health("127.0.0.1", port, Readiness(), expose, patient=True):
        wait_until(lambda: "trying again" in caplog.text, "the log line")
        holder = rf"port {port}: Address already in use by \w+, process {os.getpid()}\b"
        assert re.search(holder, caplog.text)
        other.close()
        wait_until(lambda: "the health port is served now" in caplog.text, "the port")
        assert get(port, "/healthz") == (200, "flanneld is running")
    assert len(caplog.messages) == 2


def test_other_methods_and_garbage_are_refused() -> None:
    with serve_health("127.0.0.1", 0, Readiness(), expose) as port:
        for request, answer in (
            (b"POST /healthz HTTP/1.1\r\n\r\n", b"HTTP/1.0 501 "),
            (b"\x16\x03\x01\n\n", b"Error code: 400"),
        ):
            with socket.create_connection(("127.0.0.1", port), 5) as client:
                client.sendall(request)
                with client.makefile("rb") as lines:
                    assert answer in lines.read()
