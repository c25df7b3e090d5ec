from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from etcd_server import TlsFiles, make_tls_files

from flannel_udp.errors import CertificateError
from flannel_udp.etcd import certificates


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return make_tls_files(tmp_path_factory.mktemp("tls"))


def refusal(ca: Path | None, cert: Path | None, key: Path | None) -> str:
    with pytest.raises(CertificateError) as caught:
        certificates.load(ca, cert, key)
    return str(caught.value)


def test_a_ca_alone_is_valid(tls: TlsFiles) -> None:
    loaded = certificates.load(tls.ca, None, None)
    assert loaded.roots == tls.ca.read_bytes()
    assert loaded.chain is None


def test_all_three_are_valid_and_the_key_is_not_shown(tls: TlsFiles) -> None:
    loaded = certificates.load(tls.ca, tls.client_cert, tls.client_key)
    assert loaded.key == tls.client_key.read_bytes()
    assert "PRIVATE" not in repr(loaded)


def test_no_file_means_the_system_roots() -> None:
    assert b"BEGIN CERTIFICATE" in certificates.load(None, None, None).roots


def test_certificate_and_key_come_together(tls: TlsFiles) -> None:
    assert "--etcd-keyfile" in refusal(tls.ca, tls.client_cert, None)
    assert "--etcd-certfile" in refusal(tls.ca, None, tls.client_key)


def test_a_missing_file_is_named(tls: TlsFiles, tmp_path: Path) -> None:
    absent = tmp_path / "absent.pem"
    assert f"--etcd-cafile {absent} cannot be read" in refusal(absent, None, None)
    assert f"--etcd-certfile {absent} cannot be read" in refusal(tls.ca, absent, tls.client_key)
    assert f"--etcd-keyfile {absent} cannot be read" in refusal(tls.ca, tls.client_cert, absent)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----"])
def test_garbage_is_refused(tls: TlsFiles, tmp_path: Path, content: bytes) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_bytes(content)
    assert "holds no PEM certificate" in refusal(bad, None, None)
    assert "are not a PEM certificate" in refusal(tls.ca, bad, tls.client_key)
    assert "are not a PEM certificate" in refusal(tls.ca, tls.client_cert, bad)


def test_a_key_of_another_certificate_is_refused(tls: TlsFiles) -> None:
    assert "are not a PEM certificate" in refusal(tls.ca, tls.client_cert, tls.server_key)


def test_an_encrypted_key_is_refused_without_asking_for_its_password(
    tls: TlsFiles, tmp_path: Path
) -> None:
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "ec", "-in", tls.client_key, "-out", locked, "-aes256", "-passout", "pass:x"],
        check=True,
        capture_output=True,
    )
    assert "unencrypted private key" in refusal(tls.ca, tls.client_cert, locked)


def test_a_device_without_end_is_refused_before_it_fills_the_memory(tls: TlsFiles) -> None:
    endless = Path("/dev/zero")
    assert "--etcd-cafile /dev/zero holds more than" in refusal(endless, None, None)
    assert "--etcd-keyfile /dev/zero holds" in refusal(tls.ca, tls.client_cert, endless)
