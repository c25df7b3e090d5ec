from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from etcd_server import EtcdServer, wait_until

from flannel_udp.errors import EtcdError
from flannel_udp.etcd.client import Etcd
from flannel_udp.etcd.faults import RevisionError
from flannel_udp.etcd.values import KeyChange, WatchResponse
from flannel_udp.etcd.watch_stream import Watch, WatchService


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture
def client(server: EtcdServer) -> Iterator[Etcd]:
    client = Etcd([server.url])
    yield client
    client.close()


def put(client: Etcd, key: str, value: bytes = b"v") -> int:
    current = client.get(key)
    at = current.mod_revision if current else 0
    return client.put_if_unchanged(key, value, lease=0, mod_revision=at).revision


def watch(client: Etcd, prefix: str, revision: int) -> Watch[WatchResponse]:
    return client.watch(prefix, revision, lambda response: response)


def test_a_watch_yields_puts_and_deletes_with_their_revisions(client: Etcd) -> None:
    start = put(client, "/w/before")
    stream = watch(client, "/w/", start + 1)
    answers = iter(stream)
    assert next(answers).created
    at = put(client, "/w/a", b"1")
    added = next(answers)
    put(client, "/elsewhere")
    assert client.delete_if_unchanged("/w/a", mod_revision=at)
    removed = next(answers)
    assert added.revision == at
    assert [(each.kv.key, each.kv.value, each.deleted) for each in added.changes] == [
        ("/w/a", b"1", False)
    ]
    assert [(each.kv.key, each.deleted) for each in removed.changes] == [("/w/a", True)]
    assert removed.revision == at + 2
    stream.cancel()
    assert list(answers) == []


def test_a_watch_resumed_inside_a_long_backlog_misses_nothing(tmp_path: Path) -> None:
    """etcd sends 1000 revisions at a time, each part with the newest revision in its header."""
    with EtcdServer(tmp_path) as server:
        client = Etcd([server.url])

        def write(worker: int) -> None:
            for number in range(160):
                client.put_if_unchanged(f"/b/{worker}-{number}", b"", lease=0, mod_revision=0)

        writers = [threading.Thread(target=write, args=(worker,)) for worker in range(16)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        seen: list[KeyChange] = []
        revision, parts = 1, 0
        while len(seen) < 16 * 160:
            stream = watch(client, "/b/", revision + 1)
            answers = iter(stream)
            assert next(answers).created
            part = next(answers)
            stream.cancel()
            seen += part.changes
            revision = part.revision
            parts += 1
        client.close()
    assert parts > 1, "the backlog came in one part: this test shows nothing"
    assert len({each.kv.key for each in seen}) == 16 * 160


def test_a_watch_from_a_compacted_revision_raises(server: EtcdServer, client: Etcd) -> None:
    first = put(client, "/c/a")
    server.etcdctl("compact", str(put(client, "/c/a", b"b")))
    with pytest.raises(RevisionError) as caught:
        list(watch(client, "/c/", first))
    assert caught.value.compacted


def test_a_member_behind_the_start_of_a_watch_is_no_lost_data(client: Etcd) -> None:
    with pytest.raises(EtcdError, match="it has not caught up with the cluster at http"):
        list(watch(client, "/c/", put(client, "/c/b") + 100))


def test_a_cancelled_watch_ends_in_another_thread(client: Etcd) -> None:
    stream = watch(client, "/w/", 1)
    thread = threading.Thread(target=lambda: list(stream))
    thread.start()
    stream.cancel()
    thread.join(5)
    assert not thread.is_alive()


def test_watches_leave_no_threads_behind(client: Etcd) -> None:
    before = threading.active_count()
    for _ in range(10):
        stream = watch(client, "/w/", 1)
        assert next(iter(stream)).created
        stream.cancel()
    wait_until(lambda: threading.active_count() <= before, "the end of their threads")


def test_a_watch_of_a_dying_server_fails(tmp_path: Path) -> None:
    with EtcdServer(tmp_path) as server:
        client = Etcd([server.url])
        answers = iter(watch(client, "/w/", 1))
        assert next(answers).created
        server.kill()
        with pytest.raises(EtcdError, match="cannot be used"):
            next(answers)
        client.close()


class OneWatch(WatchService):
    """Opens one watch after ``may_open`` is set, and reads it to its end."""

    def __init__(self, client: Etcd) -> None:
        super().__init__("one-watch", on_fatal=None)
        self.client, self.may_open, self.opened = client, threading.Event(), threading.Event()

    def _serve(self) -> None:
        assert self.may_open.wait(10)
        with self._opened(watch(self.client, "/w/", 1)) as changes:
            for _ in changes:
                self.opened.set()


def test_stop_ends_a_service_that_reads_a_watch(client: Etcd) -> None:
    service = OneWatch(client)
    service.start()
    service.may_open.set()
    assert service.opened.wait(10)
    service.stop()
    assert service.join(5)


def test_a_watch_opened_after_stop_ends_at_once(client: Etcd) -> None:
    service = OneWatch(client)
    service.start()
    service.stop()
    service.may_open.set()
    assert service.join(5)
