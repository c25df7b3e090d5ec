from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from etcd_server import (
    EXPIRED,
    NOT_YET,
    EtcdServer,
    TlsFiles,
    free_port,
    make_tls_files,
    wait_until,
)

from flannel_udp.errors import EtcdError, UsageError
from flannel_udp.etcd import certificates
from flannel_udp.etcd import client as etcd
from flannel_udp.etcd.client import Etcd
from flannel_udp.etcd.faults import LeaseGoneError, RevisionError
from flannel_udp.etcd.values import WatchResponse
from flannel_udp.etcd.watch_stream import Watch
from flannel_udp.options import Options


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return make_tls_files(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def client(server: EtcdServer) -> Iterator[Etcd]:
    client = Etcd([server.url])
    yield client
    client.close()


def refused_url() -> str:
    return f"http://127.0.0.1:{free_port()}"


def failure(client: Etcd) -> str:
    with pytest.raises(EtcdError) as caught:
        client.get("/key")
    client.close()
    return str(caught.value)


def put(client: Etcd, key: str, value: bytes = b"v") -> int:
    current = client.get(key)
    at = current.mod_revision if current else 0
    return client.put_if_unchanged(key, value, lease=0, mod_revision=at).revision


def watch(client: Etcd, prefix: str, revision: int) -> Watch[WatchResponse]:
    return client.watch(prefix, revision, lambda response: response)


# Endpoints and failures


def test_a_dead_first_endpoint_costs_no_time(server: EtcdServer) -> None:
    """The minimum of several measurements: other load only adds to them."""
    took = []
    for _ in range(5):
        client = Etcd([refused_url(), server.url])
        started = time.monotonic()
        assert client.get("/absent") is None
        took.append(time.monotonic() - started)
        client.close()
    assert min(took) < 0.5


def test_an_endpoint_that_dies_is_replaced_within_the_call(
    server: EtcdServer, tmp_path: Path
) -> None:
    with EtcdServer(tmp_path) as doomed:
        client = Etcd([doomed.url, server.url])
        client.get("/absent")
    assert client.get("/absent") is None
    client.close()


def test_a_keep_alive_without_an_answer_goes_to_the_next_endpoint(server: EtcdServer) -> None:
    """A member or proxy that shuts down ends the stream like this."""
    asked = []

    def end(requests: object, context: object) -> Iterator[bytes]:
        asked.append(requests)
        return iter(())

    port = free_port()
    half_dead = grpc.server(ThreadPoolExecutor(1))
    method = {"LeaseKeepAlive": grpc.stream_stream_rpc_method_handler(end)}
    handler = grpc.method_handlers_generic_handler("etcdserverpb.Lease", method)
    half_dead.add_generic_rpc_handlers((handler,))
    half_dead.add_insecure_port(f"127.0.0.1:{port}")
    half_dead.start()
    try:
        lease = int(server.grant(60), 16)
        client = Etcd([f"http://127.0.0.1:{port}", server.url])
        assert [client.keep_alive(lease) for _ in range(3)] == [60, 60, 60]
        assert len(asked) == 1  # and then avoided
        client.close()
        alone = Etcd([f"http://127.0.0.1:{port}"])
        with pytest.raises(EtcdError, match="the connection was closed at http"):
            alone.keep_alive(lease)
        alone.close()
    finally:
        half_dead.stop(None).wait(5)


def test_the_failure_of_all_endpoints_is_one_sentence_that_does_not_vary() -> None:
    urls = [refused_url(), refused_url()]
    client = Etcd(urls)
    texts = set()
    for _ in range(5):
        with pytest.raises(EtcdError) as caught:
            client.get("/key")
        texts.add(str(caught.value))
    client.close()
    assert texts == {
        f"etcd cannot be used: connection refused at {urls[0]} and {urls[1]}; check that it runs"
        " and that --etcd-endpoints is right"
    }


def test_a_password_without_a_user_is_warned_about(
    server: EtcdServer, caplog: pytest.LogCaptureFixture
) -> None:
    client = Etcd.connect(Options(etcd_endpoints=(server.url,), etcd_password="hunter2"))
    assert client.get("/absent") is None
    client.close()
    (line,) = caplog.messages
    assert "--etcd-password has no effect without --etcd-username" in line
    assert "hunter2" not in line


def test_a_frozen_server_is_given_up_at_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before the connection is found dead, which takes 13 seconds."""
    with EtcdServer(tmp_path) as server:
        client = Etcd([server.url])
        client.get("/key")
        server.pause()
        monkeypatch.setattr(etcd, "DEADLINE", 0.5)
        started = time.monotonic()
        with pytest.raises(EtcdError, match="no answer at"):
            client.get("/key")
        with pytest.raises(EtcdError, match="no answer at"):
            next(iter(watch(client, "/key", 1)))
        assert time.monotonic() - started < 8
        server.resume()
        client.close()


def test_closing_ends_calls_that_wait_and_refuses_new_ones(tmp_path: Path) -> None:
    with EtcdServer(tmp_path) as server:
        client, errors = Etcd([server.url]), list[EtcdError]()
        server.pause()

        def get() -> None:
            try:
                client.get("/key")
            except EtcdError as error:
                errors.append(error)

        waiting = threading.Thread(target=get)
        waiting.start()
        time.sleep(0.2)
        began = time.monotonic()
        client.close()
        waiting.join()
        assert time.monotonic() - began < 1
        assert len(errors) == 1
        for refused in (lambda: client.get("/key"), lambda: watch(client, "/key", 1)):
            with pytest.raises(EtcdError, match="the connection to it was ended"):
                refused()
        server.resume()


def test_a_proxy_of_the_environment_is_not_used(
    server: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", refused_url())
    monkeypatch.delenv("no_proxy", raising=False)
    client = Etcd([server.url])
    assert client.get("/absent") is None
    client.close()


def test_connect_refuses_a_malformed_endpoint() -> None:
    with pytest.raises(UsageError, match="not the URL of an etcd member"):
        Etcd.connect(Options(etcd_endpoints=("ftp://127.0.0.1:2379",)))


def test_a_closed_client_raises_etcd_error(server: EtcdServer) -> None:
    client = Etcd([server.url])
    client.close()
    with pytest.raises(EtcdError, match="ended"):
        client.get("/key")


# Login


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """A server with authentication, whose login tokens live for a second."""
    folder = tmp_path_factory.mktemp("guarded")
    with EtcdServer(folder, extra=("--auth-token-ttl=1",)) as server:
        server.enable_auth("flannel", "secret", "/net/")
        yield server


def test_login_reads_and_writes(guarded: EtcdServer) -> None:
    client = Etcd([guarded.url], username="flannel", password="secret")
    put(client, "/net/a")
    assert client.keep_alive(client.grant(60)) == 60
    client.close()


def test_an_expired_token_is_renewed_unnoticed(guarded: EtcdServer) -> None:
    client = Etcd([guarded.url], username="flannel", password="secret")
    client.get("/net/a")
    old = client._token
    end = time.monotonic() + 8
    while client._token == old:
        assert time.monotonic() < end, "the token never expired"
        time.sleep(1.5)  # every use gives a token another second
        client.get("/net/a")
    client.close()


def test_a_changed_user_database_is_noticed_by_the_next_call(guarded: EtcdServer) -> None:
    client = Etcd([guarded.url], username="flannel", password="secret")
    client.get("/net/a")
    guarded.etcdctl("user", "add", "somebody:else")
    assert client.get("/net/absent") is None
    client.close()


def test_a_restarted_server_is_logged_in_to_again(tmp_path: Path) -> None:
    with EtcdServer(tmp_path) as server:
        server.enable_auth("flannel", "secret", "/net/")
        client = Etcd([server.url], username="flannel", password="secret")
        put(client, "/net/a")
        server.restart()
        wait_until(lambda: answers(client, "/net/a"), "the client coming back")
        client.close()


def answers(client: Etcd, key: str) -> bool:
    try:
        client.get(key)
    except EtcdError:
        return False
    return True


def test_a_user_name_is_fine_where_etcd_has_no_users(server: EtcdServer) -> None:
    client = Etcd([server.url], username="flannel", password="secret")
    assert client.get("/absent") is None
    client.close()


@pytest.mark.parametrize(
    ("username", "password", "sentence"),
    [
        ("flannel", "hunter2", "the user name or the password is wrong at"),
        ("nobody", "hunter2", "the user name or the password is wrong at"),
        ("", "", "it asks for a login at"),
        ("flannel", "secret", "permission denied at"),
    ],
)
def test_the_error_about_a_refused_login_has_no_password(
    guarded: EtcdServer, username: str, password: str, sentence: str
) -> None:
    text = failure(Etcd([guarded.url], username=username, password=password))
    assert sentence in text
    assert guarded.url in text
    assert "hunter2" not in text
    assert "secret" not in text


def test_a_refused_watch_is_an_error_and_not_silence(guarded: EtcdServer) -> None:
    client = Etcd([guarded.url], username="flannel", password="secret")
    with pytest.raises(EtcdError, match="permission denied at"):
        next(iter(watch(client, "/elsewhere/", 1)))
    client._token = "made.up"
    # Of a watch etcd 3.5 says "permission denied" here too.
    with pytest.raises(EtcdError, match=r"does not accept the login|permission denied"):
        next(iter(watch(client, "/net/", 1)))
    assert next(iter(watch(client, "/net/", 1))).created  # with a new login
    client.close()


# TLS


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory, tls: TlsFiles) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("tls-etcd"), tls=tls) as server:
        yield server


def test_a_ca_file_alone_is_enough(tls_server: EtcdServer, tls: TlsFiles) -> None:
    client = Etcd.connect(Options(etcd_endpoints=(tls_server.url,), etcd_cafile=tls.ca))
    put(client, "/a")
    client.close()


def test_https_without_a_ca_file_trusts_the_system_roots(
    tls_server: EtcdServer, tls: TlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "not from an authority that is trusted" in failure(Etcd([tls_server.url]))
    monkeypatch.setenv("SSL_CERT_FILE", str(tls.ca))
    client = Etcd([tls_server.url])
    assert client.get("/absent") is None
    client.close()


def test_a_ca_of_somebody_else_is_named(tls_server: EtcdServer, tmp_path: Path) -> None:
    other = certificates.load(make_tls_files(tmp_path).ca, None, None)
    text = failure(Etcd([tls_server.url], certs=other))
    assert "not from an authority that is trusted" in text
    assert "--etcd-cafile" in text


def test_a_certificate_for_another_name_is_named(tmp_path: Path) -> None:
    tls = make_tls_files(tmp_path / "tls", names="DNS:elsewhere")
    with EtcdServer(tmp_path / "etcd", tls=tls) as server:
        text = failure(Etcd([server.url], certs=certificates.load(tls.ca, None, None)))
    assert "its TLS certificate is for another name at" in text


@pytest.mark.parametrize(
    ("validity", "words"),
    [
        ({"server_life": EXPIRED}, ("has expired", "renew it, or set the clock of this host")),
        ({"server_life": NOT_YET}, ("is not valid yet", "set the clock of this host")),
    ],
    ids=["expired", "not yet"],
)
def test_a_certificate_at_the_wrong_time_names_the_clock(
    tmp_path: Path, validity: dict[str, Any], words: tuple[str, str]
) -> None:
    tls = make_tls_files(tmp_path / "tls", **validity)
    with EtcdServer(tmp_path / "etcd", tls=tls) as server:
        text = failure(Etcd([server.url], certs=certificates.load(tls.ca, None, None)))
    assert f"its TLS certificate {words[0]} at" in text
    assert words[1] in text


def test_http_to_a_tls_server_advises_https(tls_server: EtcdServer) -> None:
    text = failure(Etcd([tls_server.url.replace("https", "http")]))
    assert "the connection was closed" in text
    assert "https://" in text


def test_https_to_a_plain_server_advises_http(server: EtcdServer, tls: TlsFiles) -> None:
    certs = certificates.load(tls.ca, None, None)
    text = failure(Etcd([server.url.replace("http", "https")], certs=certs))
    assert "TLS handshake" in text
    assert "http://" in text


def test_a_client_certificate_is_presented_and_its_absence_named(
    tmp_path: Path, tls: TlsFiles
) -> None:
    with EtcdServer(tmp_path / "etcd", tls=tls, client_cert_auth=True) as server:
        certs = certificates.load(tls.ca, tls.client_cert, tls.client_key)
        client = Etcd([server.url], certs=certs)
        assert client.get("/absent") is None
        client.close()
        text = failure(Etcd([server.url], certs=certificates.load(tls.ca, None, None)))
    assert "client certificate" in text
    assert "--etcd-certfile" in text


def test_certificate_files_rotated_on_disk_are_taken_up(
    tmp_path: Path, tls: TlsFiles, caplog: pytest.LogCaptureFixture
) -> None:
    """Another authority, server and client certificate, and for a while only half of them."""
    caplog.set_level(logging.INFO)
    fresh = make_tls_files(tmp_path / "fresh")
    files = [tmp_path / name for name in ("ca.pem", "client.pem", "client.key")]
    new = [fresh.ca, fresh.client_cert, fresh.client_key]
    for file, source in zip(files, (tls.ca, tls.client_cert, tls.client_key), strict=True):
        shutil.copy(source, file)
    server = EtcdServer(tmp_path / "etcd", tls=tls, client_cert_auth=True)
    ca, cert, key = files
    options = Options(
        etcd_endpoints=(server.url,), etcd_cafile=ca, etcd_certfile=cert, etcd_keyfile=key
    )
    with server:
        client = Etcd.connect(options)
        assert client.get("/absent") is None
        server.tls = fresh
        server.restart()
        assert "not from an authority that is trusted" in refusal(client)
        for file, source in zip(files[:2], new[:2], strict=True):
            shutil.copy(source, file)
        refusal(client)
        refusal(client)
        shutil.copy(new[2], key)
        refusal(client)
        assert client.get("/absent") is None
        client.close()
    told = [text for text in caplog.messages if "certificate" in text]
    assert len(told) == 3
    assert "are not a PEM certificate and its unencrypted private key" in told[0]
    assert told[1] == "the certificate files can be used again"
    assert told[2] == "the certificate files changed: connecting to etcd with the new ones"


def refusal(client: Etcd) -> str:
    with pytest.raises(EtcdError) as caught:
        client.get("/absent")
    return str(caught.value)


# Calls


def test_a_key_is_created_once(client: Etcd) -> None:
    first = client.put_if_unchanged("/once", b"a", lease=0, mod_revision=0)
    second = client.put_if_unchanged("/once", b"b", lease=0, mod_revision=0)
    assert first.succeeded
    assert not second.succeeded
    assert second.current
    assert second.current.value == b"a"
    assert second.current.mod_revision == first.revision


def test_a_write_whose_answer_was_lost_counts_as_done_when_asked_again(client: Etcd) -> None:
    lease = client.grant(60)
    first = client.put_if_unchanged("/twice", b"a", lease=lease, mod_revision=0)
    again = client.put_if_unchanged("/twice", b"a", lease=lease, mod_revision=0)
    assert again.succeeded
    assert again.revision == first.revision
    other_lease = client.put_if_unchanged("/twice", b"a", lease=0, mod_revision=0)
    assert not other_lease.succeeded


def test_a_changed_key_is_not_deleted(client: Etcd) -> None:
    at = put(client, "/kept", b"a")
    put(client, "/kept", b"b")
    assert not client.delete_if_unchanged("/kept", mod_revision=at)
    found = client.get("/kept")
    assert found
    assert client.delete_if_unchanged("/kept", mod_revision=found.mod_revision)
    assert client.get("/kept") is None


def test_a_lease_that_is_gone_has_its_own_error(client: Etcd) -> None:
    lease = client.grant(60)
    client.revoke(lease)
    client.revoke(lease)
    assert client.keep_alive(lease) == 0
    with pytest.raises(LeaseGoneError):
        client.put_if_unchanged("/leased", b"a", lease=lease, mod_revision=0)


def test_the_past_can_be_read_until_it_is_compacted(server: EtcdServer, client: Etcd) -> None:
    first = put(client, "/past", b"a")
    second = put(client, "/past", b"b")
    found = client.get("/past", revision=first)
    assert found
    assert found.value == b"a"
    server.etcdctl("compact", str(second))
    with pytest.raises(RevisionError) as compacted:
        client.get("/past", revision=first)
    assert compacted.value.compacted
    with pytest.raises(RevisionError) as future:
        client.get("/past", revision=second + 1000)
    assert not future.value.compacted


def test_a_range_holds_the_prefix_and_nothing_else(client: Etcd) -> None:
    for key in ("/p/a", "/p/b", "/p", "/p0", "/q"):
        put(client, key)
    assert [kv.key for kv in client.range("/p/").kvs] == ["/p/a", "/p/b"]


def test_an_answer_may_be_longer_than_the_four_megabytes_of_grpc(client: Etcd) -> None:
    for number in range(5):
        put(client, f"/big/{number}", bytes(1_000_000))
    assert sum(len(kv.value) for kv in client.range("/big/").kvs) == 5_000_000
