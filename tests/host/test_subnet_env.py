"""subnet.env: what other programs read is exact and never half-written."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_udp.errors import SubnetFileError
from flannel_udp.host.subnet_env import Previous, SubnetEnv, read, read_previous, write

ENV = SubnetEnv(IPv4Network("10.1.0.0/16"), IPv4Interface("10.1.5.1/24"), 1472, False)
TEXT = (
    "FLANNEL_NETWORK=10.1.0.0/16\n"
    "FLANNEL_SUBNET=10.1.5.1/24\n"
    "FLANNEL_MTU=1472\n"
    "FLANNEL_IPMASQ=false\n"
)


@pytest.fixture
def strict_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("strict_umask")
def test_the_file_is_what_flannel_writes_and_readable_by_all(tmp_path: Path) -> None:
    path = tmp_path / "run" / "flannel" / "subnet.env"
    write(path, ENV)
    assert path.read_text() == TEXT
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    assert stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o755
    assert os.listdir(path.parent) == ["subnet.env"]


def test_the_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    write(path, ENV)
    assert read(path) == ENV


def test_a_missing_file_is_no_error(tmp_path: Path) -> None:
    assert read(tmp_path / "subnet.env") is None
    assert read(tmp_path / "none" / "subnet.env") is None


def test_the_file_of_a_dual_stack_flannel_is_read(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    path.write_text(
        "# by hand\n\nexport FLANNEL_NETWORK='10.1.0.0/16'\nFLANNEL_SUBNET=\"10.1.5.1/24\"\n"
        "FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:5::1/64\n"
        "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    )
    assert read(path) == SubnetEnv(ENV.network, ENV.subnet_with_gateway, 1450, True)


def test_an_earlier_runs_file_needs_only_the_subnet(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    assert read_previous(path) is None
    path.write_text(TEXT)
    assert read_previous(path) == Previous(IPv4Network("10.1.5.0/24"), ENV.network)
    path.write_text("FLANNEL_SUBNET=10.1.5.1/24\nFLANNEL_MTU=many\n")
    assert read_previous(path) == Previous(IPv4Network("10.1.5.0/24"), None)
    for text in ("FLANNEL_NETWORK=10.1.0.0/16", TEXT.replace("10.1.0.0/16", "x"), "\0\xff"):
        path.write_text(text)
        with pytest.raises(SubnetFileError, match=str(path)):
            read_previous(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0\xff",
        "DOCKER_OPTS=x\n",
        TEXT.replace("10.1.5.1/24", "10.1.5.256/24"),
        TEXT.replace("10.1.0.0/16", "fd00::/48"),
        TEXT.replace("1472", "many"),
        TEXT.replace("1472", "9" * 100_000),
        TEXT.replace("false", "no"),
        TEXT.replace("FLANNEL_SUBNET", "SUBNET"),
    ],
)
def test_an_invalid_file_is_a_sentence_with_its_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "subnet.env"
    path.write_text(text)
    with pytest.raises(SubnetFileError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(path))


@given(content=st.binary())
def test_any_content_is_read_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.env"
    path.write_bytes(content)
    with pytest.raises(SubnetFileError):
        read(path)


def test_a_reader_never_sees_a_half_written_file(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    other = SubnetEnv(IPv4Network("10.0.0.0/8"), IPv4Interface("10.200.200.1/24"), 8972, True)
    write(path, ENV)
    done = threading.Event()

    def rewrite() -> None:
        for _ in range(100):
            write(path, other)
            write(path, ENV)
        done.set()

    writer = threading.Thread(target=rewrite)
    writer.start()
    while not done.is_set():
        assert read(path) in (ENV, other)
    writer.join()
    assert os.listdir(tmp_path) == ["subnet.env"]


def test_an_unwritable_place_is_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "subnet.env").mkdir()
    for path in (tmp_path / "file" / "subnet.env", tmp_path / "subnet.env"):
        with pytest.raises(SubnetFileError, match="cannot write"):
            write(path, ENV)
    assert sorted(os.listdir(tmp_path)) == ["file", "subnet.env"]


def test_links_in_a_circle_are_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    path.symlink_to(tmp_path / "other")
    (tmp_path / "other").symlink_to(path)
    with pytest.raises(SubnetFileError, match=f"cannot write {path}: Too many levels of symbolic"):
        write(path, ENV)
    with pytest.raises(SubnetFileError, match=f"cannot read {path}: Too many levels of symbolic"):
        read(path)


def test_an_unreadable_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SubnetFileError, match="cannot read"):
        read(tmp_path)


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "link.env").symlink_to(tmp_path / "subnet.env")
    write(tmp_path / "link.env", ENV)
    assert (tmp_path / "link.env").is_symlink()
    assert read(tmp_path / "subnet.env") == ENV
