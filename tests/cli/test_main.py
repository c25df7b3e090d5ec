"""The command line: every form that flannel accepts, and one sentence for each mistake."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import fields
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_udp.cli.flags import options_of
from flannel_udp.cli.main import _check_kubernetes_flags, _parse, main
from flannel_udp.errors import UsageError
from flannel_udp.options import Options


def parse(*argv: str, **environ: str) -> Options:
    values = _parse(argv, environ)
    _check_kubernetes_flags(values)
    return options_of(values)


def program(*argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flannel_udp", *argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env={"PATH": "/usr/bin:/bin", **environ},
    )


RESTARTED_EARLY = """
import os, signal, sys
from flannel_udp.cli.main import main
from flannel_udp.daemon import daemon
from flannel_udp.handover import takeover

def take_over(options, inherited):
    os.kill(os.getpid(), signal.SIGUSR2)

def run(options, taken):
    assert signal.sigtimedwait({signal.SIGUSR2}, 0)
    return 7

takeover.take_over, daemon.run = take_over, run
sys.exit(main([]))
"""


def test_a_restart_signal_before_the_daemon_handles_it_stays_pending() -> None:
    ended = subprocess.run([sys.executable, "-c", RESTARTED_EARLY], timeout=30)
    assert ended.returncode == 7


def test_without_flags_the_defaults_are_those_of_flannel() -> None:
    assert parse() == Options()


def test_the_flags_of_a_flannel_unit_file_are_accepted() -> None:
    options = parse(
        "-etcd-endpoints=http://10.0.0.1:2379,http://10.0.0.2:2379",
        "-etcd-prefix=/flannel/network",
        "-iface=eth0",
    )
    assert options == Options(
        etcd_endpoints=("http://10.0.0.1:2379", "http://10.0.0.2:2379"),
        etcd_prefix="/flannel/network",
        iface=("eth0",),
    )


@pytest.mark.parametrize(
    "argv",
    [
        ["--healthz-port=8080"],
        ["--healthz-port", "8080"],
        ["-healthz-port=8080"],
        ["-healthz-port", "8080"],
        ["-healthz-port=1", "--healthz-port=8080"],
    ],
)
def test_one_dash_or_two_equals_or_space_are_the_same(argv: list[str]) -> None:
    assert parse(*argv) == Options(healthz_port=8080)


def test_every_flag_reaches_its_option() -> None:
    options = parse(
        "--etcd-endpoints=https://a:1 , https://b:2,",
        "--etcd-prefix=/a//b/",
        "--etcd-keyfile=k",
        "--etcd-certfile=c",
        "--etcd-cafile=ca",
        "--etcd-username=u",
        "--etcd-password=p",
        "--iface=eth0",
        "--iface",
        "10.0.0.1",
        "--iface-regex=^en",
        "--iface-regex",
        r"10\.0\..*",
        "--iface-can-reach=8.8.8.8",
        "--subnet-file=/tmp/s.env",
        "--public-ip=192.0.2.1",
        "--public-ipv6=2001:db8::1",
        "--subnet-lease-renew-margin=1439",
        "--ip-masq",
        "--ip-masq-fully-random-disable",
        "--healthz-ip=::1",
        "--healthz-port=65535",
        "--iptables-resync=60",
        "--iptables-forward-rules=false",
        "--ip-blackhole-route",
        "--source-check=off",
        "-v=4",
        "--offload=tso",
        "--busy-poll-us=20",
        "--log-format=json",
        "--stale-hold=30m",
    )
    expected = Options(
        etcd_endpoints=("https://a:1", "https://b:2"),
        etcd_prefix="/a/b",
        etcd_keyfile=Path("k"),
        etcd_certfile=Path("c"),
        etcd_cafile=Path("ca"),
        etcd_username="u",
        etcd_password="p",
        iface=("eth0", "10.0.0.1"),
        iface_regex=("^en", r"10\.0\..*"),
        iface_can_reach=IPv4Address("8.8.8.8"),
        subnet_file=Path("/tmp/s.env"),
        public_ip=IPv4Address("192.0.2.1"),
        public_ipv6=IPv6Address("2001:db8::1"),
        subnet_lease_renew_margin=1439,
        stale_hold=1800,
        ip_masq=True,
        ip_masq_fully_random_disable=True,
        healthz_ip="::1",
        healthz_port=65535,
        iptables_resync=60,
        iptables_forward_rules=False,
        ip_blackhole_route=True,
        source_check="off",
        offload="tso",
        busy_poll_us=20,
        log_format="json",
        verbosity=4,
    )
    assert options == expected
    for field in fields(Options):
        assert getattr(options, field.name) != getattr(Options(), field.name)


@pytest.mark.parametrize("value", ["1", "t", "T", "TRUE", "true", "True"])
def test_true_is_what_go_takes_for_true(value: str) -> None:
    assert parse(f"-ip-blackhole-route={value}").ip_blackhole_route is True


@pytest.mark.parametrize("value", ["0", "f", "F", "FALSE", "false", "False"])
def test_false_is_what_go_takes_for_false(value: str) -> None:
    assert parse(f"-iptables-forward-rules={value}").iptables_forward_rules is False


def test_a_boolean_never_takes_the_next_argument() -> None:
    options = parse("-ip-blackhole-route", "-iface", "eth0")
    assert options == Options(ip_blackhole_route=True, iface=("eth0",))
    with pytest.raises(UsageError, match="write --ip-blackhole-route=VALUE"):
        parse("-ip-blackhole-route", "false")


def test_a_value_may_start_with_a_dash_hold_spaces_and_equals_signs() -> None:
    assert parse("--etcd-password", "-x").etcd_password == "-x"
    assert parse("--etcd-password= a=b --c").etcd_password == " a=b --c"
    assert parse("--etcd-username", "--iface").etcd_username == "--iface"


@pytest.mark.parametrize(
    ("argv", "verbosity"),
    [(["-v"], 1), (["--v"], 1), (["-v", "10"], 10), (["-v=2"], 2), (["-v", "-iface=e"], 1)],
)
def test_verbosity_is_accepted_with_and_without_a_number(argv: list[str], verbosity: int) -> None:
    assert parse(*argv).verbosity == verbosity


def test_an_empty_value_of_an_optional_flag_is_the_default() -> None:
    argv = ["--public-ip=", "--iface=", "--etcd-cafile=", "--subnet-file=", "--iface-can-reach="]
    assert parse(*argv) == Options()


def test_the_environment_sets_defaults_and_the_command_line_wins() -> None:
    environ = {
        "FLANNELD_ETCD_PREFIX": "/env",
        "FLANNELD_IFACE": "eth7",
        "FLANNELD_IP_BLACKHOLE_ROUTE": "true",
        "FLANNELD_PUBLIC_IP": "",
        "FLANNELD_V": "3",
        "FLANNELD_VERSION": "v0.28.0",
        "FLANNELD_OTHER": "x",
    }
    assert parse(**environ) == Options(
        etcd_prefix="/env", iface=("eth7",), ip_blackhole_route=True, verbosity=3
    )
    options = parse("-iface=eth0", "--iface=eth1", "--ip-blackhole-route=false", **environ)
    assert options.iface == ("eth0", "eth1")
    assert options.ip_blackhole_route is False
    assert options.etcd_prefix == "/env"
    assert parse("--public-ip=", FLANNELD_PUBLIC_IP="192.0.2.1") == Options()


def test_variables_of_flannels_packages_have_the_lowest_priority() -> None:
    theirs = {
        "FLANNEL_ETCD_ENDPOINTS": "http://192.0.2.1:2379,http://192.0.2.2:2379",
        "FLANNEL_ETCD_PREFIX": "/atomic.io/network",
    }
    assert parse(**theirs) == Options(
        etcd_endpoints=("http://192.0.2.1:2379", "http://192.0.2.2:2379"),
        etcd_prefix="/atomic.io/network",
    )
    older = {"FLANNEL_ETCD": "http://192.0.2.3:2379", "FLANNEL_ETCD_KEY": "/old"}
    assert parse(**older) == Options(etcd_endpoints=("http://192.0.2.3:2379",), etcd_prefix="/old")
    assert parse(**older, **theirs) == parse(**theirs)
    assert parse(**theirs, FLANNELD_ETCD_PREFIX="/ours").etcd_prefix == "/ours"
    assert parse(**theirs, FLANNELD_ETCD_PREFIX="").etcd_prefix == "/atomic.io/network"
    assert parse("-etcd-prefix=/flag", **theirs).etcd_prefix == "/flag"
    with pytest.raises(UsageError, match=r"^FLANNEL_ETCD_ENDPOINTS: "):
        parse(FLANNEL_ETCD_ENDPOINTS=" ")


def test_klog_flags_are_accepted_silently(caplog: pytest.LogCaptureFixture) -> None:
    argv = ["-logtostderr", "--alsologtostderr=true", "-vmodule=a=2", "--log_backtrace_at", "f:1"]
    assert parse(*argv, "-stderrthreshold=INFO", "-log_dir=/tmp") == Options()
    assert not caplog.records


def test_kubernetes_flags_are_ignored_with_a_line_each(caplog: pytest.LogCaptureFixture) -> None:
    argv = ["--kube-api-url=http://x", "-kubeconfig-file", "f", "--set-node-network-unavailable"]
    with caplog.at_level(logging.WARNING):
        assert parse(*argv, "--use-multi-cluster-cidr", "--kube-subnet-mgr=false") == Options()
    assert len(caplog.records) == 4
    assert "--kube-api-url" in caplog.text
    assert "--use-multi-cluster-cidr" in caplog.text


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--bogus"], "no flag --bogus"),
        (["--public-pi=1.1.1.1"], "did you mean --public-ip?"),
        (["-etcd-endpoint", "http://x"], "did you mean --etcd-endpoints?"),
        (["-v2"], "no flag --v2"),
        (["--"], "no flag"),
        (["--" + "x" * 5000], "no flag"),
        (["x" * 5000], "is neither a flag nor a command"),
        (["eth0"], "'eth0' is neither a flag nor a command; see flannel-udp --help"),
        (["statsu"], "did you mean flannel-udp status?"),
        (["mk-docker-opt", "-c"], "did you mean flannel-udp mk-docker-opts?"),
        (["--iface=eth0", "eth1"], "'eth1' stands where a flag should"),
        (["--iface"], "--iface needs a value"),
        (["-public-ip=999.1.1.1"], "--public-ip: '999.1.1.1' is not an IPv4 address"),
        (["-public-ip=fd00::1"], "--public-ip"),
        (["--public-ipv6=1.1.1.1"], "is not an IPv6 address"),
        (["--iface-can-reach=eth0"], "--iface-can-reach"),
        (["--iface-regex=("], "not a regular expression"),
        (["-subnet-lease-renew-margin=0"], "from 1 to 1439 minutes"),
        (["-subnet-lease-renew-margin=1440"], "--subnet-lease-renew-margin"),
        (["-subnet-lease-renew-margin=1h"], "--subnet-lease-renew-margin"),
        (["--subnet-lease-renew-margin="], "--subnet-lease-renew-margin"),
        (["--healthz-port=65536"], "--healthz-port"),
        (["--healthz-port=-1"], "--healthz-port"),
        (["--healthz-port=" + "9" * 5000], "--healthz-port"),
        (["--healthz-port=٣"], "--healthz-port"),
        (["--healthz-ip=here"], "--healthz-ip"),
        (["--iptables-resync=0"], "--iptables-resync"),
        (["--stale-hold=1d"], "no time such as 90s, 30m or 24h"),
        (["--stale-hold=-1s"], "--stale-hold"),
        (["--ip-blackhole-route=maybe"], "neither true nor false"),
        (["--source-check=on"], "'on' is none of full, address, off"),
        (["--source-check"], "--source-check needs a value"),
        (["--subnet-file=/"], "--subnet-file: '/' does not name a file"),
        (["--subnet-file=./"], "--subnet-file"),
        (["--subnet-file=.."], "--subnet-file"),
        (["--etcd-prefix="], "--etcd-prefix"),
        (["--etcd-endpoints=,"], "--etcd-endpoints"),
        (["-v=x"], "--v"),
        (["--log-format=xml"], "'xml' is none of text, json"),
        (["--kube-subnet-mgr"], "--kube-subnet-mgr cannot be used"),
        (["--version=x"], "--version"),
    ],
)
def test_a_mistake_gives_one_sentence_that_names_the_flag(argv: list[str], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(*argv)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_mistake_in_the_environment_names_the_variable() -> None:
    with pytest.raises(UsageError, match=r"^FLANNELD_PUBLIC_IP: '999\.1\.1\.1'"):
        parse(FLANNELD_PUBLIC_IP="999.1.1.1")
    with pytest.raises(UsageError, match=r"^FLANNELD_IP_MASQ: 'perhaps'"):
        parse(FLANNELD_IP_MASQ="perhaps")


@given(st.lists(st.text() | st.sampled_from(["-v", "--iface", "=", "-", "-public-ip=", "1.1.1.1"])))
def test_any_arguments_give_options_or_a_usage_error(argv: list[str]) -> None:
    try:
        parse(*argv)
    except UsageError as error:
        str(error).encode(errors="backslashreplace")


def test_a_password_is_in_no_message_and_not_in_the_help() -> None:
    for argv in (
        ["--etcd-password", "pass", "hunter2"],
        ["--etcd-pasword=hunter2"],
        ["--etcd-password=hunter2", "--bogus"],
        ["--etcd-password", "hunter2", "--healthz-port=x"],
    ):
        with pytest.raises(UsageError) as caught:
            parse(*argv)
        assert "hunter2" not in str(caught.value)
    assert "hunter2" not in program("--help", FLANNELD_ETCD_PASSWORD="hunter2").stdout


def test_version_is_printed_whatever_the_environment() -> None:
    for form in ("--version", "-version", "-version=true", "--version=1"):
        result = program(form, FLANNELD_PUBLIC_IP="bad")
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.strip() == "0.1.0"


def test_a_false_version_starts_the_daemon() -> None:
    assert parse("-version=false", "--iface=eth0") == Options(iface=("eth0",))
    result = program("-version=false", "--healthz-port=x")
    assert (result.returncode, result.stdout) == (1, "")


def test_help_names_every_flag_that_has_an_effect() -> None:
    result = program("--help")
    assert result.returncode == 0
    assert result.stderr == ""
    for field in fields(Options):
        name = "v" if field.name == "verbosity" else field.name.replace("_", "-")
        assert f"--{name}" in result.stdout
    assert "kube" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100


@pytest.mark.parametrize("arguments", [["help"], ["help", "status"], ["help", "mk-docker-opts"]])
def test_help_is_also_a_command(arguments: list[str]) -> None:
    result = program(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == program(*arguments[1:], "--help").stdout


def test_a_usage_error_exits_with_1_and_one_line() -> None:
    result = program("--bogus")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == "flannel-udp: there is no flag --bogus; see flannel-udp --help\n"


def test_mk_docker_opts_is_a_sub_command(tmp_path: Path) -> None:
    out = tmp_path / "docker"
    assert main(["mk-docker-opts", "-f", str(tmp_path / "none"), "-d", str(out)]) == 0
    assert out.read_text() == 'DOCKER_OPTS=""\n'


@pytest.mark.parametrize("arguments", [["--help"], ["status", "--help"], ["--bogus"]])
def test_help_and_usage_errors_load_no_heavy_module(arguments: list[str]) -> None:
    code = f"""if True:
        import sys
        from flannel_udp.cli.main import main
        try:
            main({arguments!r})
        finally:
            print("loaded:", *sys.modules)"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    output, _, loaded = result.stdout.partition("loaded: ")
    assert "usage: " in output or "--bogus" in result.stderr
    ours = {f"flannel_udp.{name}" for name in ("backends.pump.pump", "daemon", "observe.status")}
    heavy = {"grpc", "etcd3", "pyroute2", "rich", "shtab", "prometheus_client", "cffi"} | ours
    assert "flannel_udp.cli.main" in loaded.split()
    assert not heavy & set(loaded.split())
