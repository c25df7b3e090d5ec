"""The rules as the host's own tools see them, written by each of the tools."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from etcd_server import wait_until

from flannel_udp.errors import FirewallError
from flannel_udp.host.firewall import tools
from flannel_udp.host.firewall.rule_keeper import Firewall
from flannel_udp.host.firewall.rules import Policy
from flannel_udp.host.firewall.tools import Repair
from flannel_udp.host.netns import Namespace

NETWORK = IPv4Network("10.1.0.0/16")
POLICY = Policy(NETWORK, IPv4Network("10.1.5.0/24"), masquerade=True, forward=True)
OTHER = Policy(
    IPv4Network("10.2.0.0/16"), IPv4Network("10.2.9.0/24"), masquerade=True, forward=True
)
PORT = 8285
TABLE = ("-s", "list", "table", "ip", "flannel-ipv4")


@contextmanager
def kept(
    namespace: Namespace,
    policy: Policy = POLICY,
    port: int = PORT,
    *,
    nftables: bool = False,
    resync: float = 0.05,
    stale: IPv4Network | None = None,
) -> Iterator[Firewall]:
    """The policy in force in the host."""
    firewall = Firewall(policy, port, nftables=nftables, resync=resync, stale=stale)
    namespace.call(firewall.__enter__)
    try:
        yield firewall
    finally:
        namespace.call(firewall.__exit__)


def text(namespace: Namespace) -> str:
    """All rules of the host, by whichever tool, without counters."""
    saved = namespace.run(["iptables-save"], check=True).stdout
    lines = [line for line in saved.splitlines() if line.startswith("-")]
    return "\n".join([*lines, namespace.run(["nft", *TABLE]).stdout])


def test_rules_come_and_go_and_leave_nothing(namespace: Namespace, nftables: bool) -> None:
    before = text(namespace)
    with kept(namespace, nftables=nftables) as firewall:
        during = text(namespace)
        assert during.count("flanneld masq") == 7 - nftables  # without iptables' jump
        assert during.count("flanneld forward") == 3 - nftables
        assert during.lower().count("random") == 2
        assert ("FLANNEL-FWD" in during, "flannel-ipv4" in during) == (not nftables, nftables)
        assert firewall.report()["problems"] == []
        assert "tables v" in firewall.report()["tool"]
    assert text(namespace) == before


@pytest.mark.parametrize("wanted", ["masquerade", "forward"])
def test_each_half_can_be_had_alone(namespace: Namespace, nftables: bool, wanted: str) -> None:
    alone = replace(POLICY, masquerade=wanted == "masquerade", forward=wanted == "forward")
    with kept(namespace, alone, nftables=nftables):
        during = text(namespace)
        assert ("flanneld masq" in during) == (wanted == "masquerade")
        assert ("flanneld forward" in during) == (wanted == "forward")


def test_ports_are_predictable_on_request(namespace: Namespace, nftables: bool) -> None:
    with kept(namespace, replace(POLICY, random_fully=False), nftables=nftables):
        assert "masquerade" in text(namespace).lower()
        assert "random" not in text(namespace)


def test_nothing_is_touched_where_nothing_is_wanted(namespace: Namespace, nftables: bool) -> None:
    nothing = replace(POLICY, masquerade=False, forward=False)
    with kept(namespace, nothing, nftables=nftables):
        assert "FLANNEL" not in text(namespace)
        assert "flannel" not in namespace.run(["nft", "list", "tables"]).stdout


def test_rules_of_a_killed_run_are_replaced_and_then_removed(
    namespace: Namespace, nftables: bool
) -> None:
    old = replace(POLICY, subnet=IPv4Network("10.1.77.0/24"))
    killed = Firewall(old, PORT, nftables=nftables, resync=3600)
    namespace.call(killed.__enter__)
    assert "10.1.77.0/24" in text(namespace)
    with kept(namespace, nftables=nftables):
        during = text(namespace)
        assert "10.1.77.0/24" not in during
        assert during.count("10.1.5.0/24") == 3
    assert "flannel" not in text(namespace).lower()


def test_switching_the_tool_leaves_no_rules_of_the_old_one(namespace: Namespace) -> None:
    for first in (True, False):
        namespace.call(Firewall(POLICY, PORT, nftables=first, resync=3600).__enter__)
        with kept(namespace, nftables=not first):
            assert ("FLANNEL-FWD" in text(namespace)) == first
            assert ("flannel-ipv4" in text(namespace)) != first


def test_rules_of_the_previous_network_are_removed(namespace: Namespace, variant: str) -> None:
    namespace.call(Firewall(OTHER, PORT, nftables=False, resync=3600).__enter__)
    with kept(namespace, stale=OTHER.network):
        assert "10.2." not in text(namespace)
        assert "10.1." in text(namespace)


def damage(namespace: Namespace, *commands: str) -> None:
    for command in commands:
        # Legacy iptables has one lock for the machine, which the daemon may hold.
        patient = command.replace("iptables ", "iptables -w 20 ")
        namespace.run(patient.split(), check=True)


@pytest.mark.parametrize(
    "command",
    [
        "iptables -F FLANNEL-FWD",
        "iptables -D FORWARD 1",
        "iptables -F FORWARD",
        "iptables -t nat -F",
        "iptables -t nat -D FLANNEL-POSTRTG 1",
        "iptables -t nat -D FLANNEL-POSTRTG 3",
    ],
)
def test_damage_is_repaired(
    namespace: Namespace, variant: str, command: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with kept(namespace):
        before = text(namespace)
        damage(namespace, command)
        wait_until(lambda: "in place again" in caplog.text, "the rules being found in place again")
        assert text(namespace) == before
    assert caplog.text.count("changed by another program") == 1


def test_chains_of_docker_before_ours_are_no_damage(
    namespace: Namespace, variant: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As dockerd inserts them, one after another, while it starts."""

    def forward() -> list[str]:
        lines = text(namespace).splitlines()
        return [line for line in lines if line.startswith("-A FORWARD")]

    caplog.set_level(logging.INFO)
    with kept(namespace):
        for chain in ("DOCKER-FORWARD", "DOCKER-ISOLATION-STAGE-1"):
            damage(namespace, f"iptables -N {chain}", f"iptables -I FORWARD -j {chain}")
            wait_until(lambda: forward()[0].endswith("-j FLANNEL-FWD"), "our jump being first")
        assert len(forward()) == 3
        assert caplog.text.count("docker put its chains before flannel's") == 1
        assert "WARNING" not in caplog.text
        # In one transaction, or each damage may be found, and logged, by itself.
        damages = "*filter\n-D FORWARD 1\n-F FLANNEL-FWD\nCOMMIT\n"
        restore = ("iptables-restore", "--wait", "20", "--noflush")
        namespace.run(restore, input=damages, check=True)
        wait_until(lambda: "in place again" in caplog.text, "the rules being found in place again")
        assert forward()[0].endswith("-j FLANNEL-FWD")
    assert caplog.text.count("changed by another program") == 1


@pytest.mark.parametrize(
    "command", ["nft delete table ip flannel-ipv4", "nft flush chain ip flannel-ipv4 postrtg-8285"]
)
def test_damage_to_nftables_is_repaired(namespace: Namespace, command: str) -> None:
    with kept(namespace, nftables=True):
        before = text(namespace)
        damage(namespace, command)
        wait_until(lambda: text(namespace) == before, "the rules being restored")


def test_rules_in_use_are_only_read(
    namespace: Namespace, nftables: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with kept(namespace, nftables=nftables, resync=0.01):
        commands: list[str] = []
        run = tools._run

        def record(command: list[str], feed: str = "") -> str:
            commands.append(" ".join(command) + feed)
            return run(command, feed)

        monkeypatch.setattr(tools, "_run", record)
        wait_until(lambda: len(commands) > 10, "several checks")
        assert all("-save" in command or " list " in command for command in commands)


def test_two_daemons_keep_to_their_own_rules(namespace: Namespace, nftables: bool) -> None:
    with kept(namespace, nftables=nftables):
        alone = text(namespace)
        with kept(namespace, OTHER, PORT + 1, nftables=nftables):
            both = text(namespace)
            assert "10.1.5.0/24" in both
            assert "10.2.9.0/24" in both
            if not nftables:
                assert both.count("-j FLANNEL-FWD") == 1
                assert both.count("--mark") == 1
        assert text(namespace) == alone


def test_rules_of_others_in_any_form_and_encoding_are_read_and_kept(
    namespace: Namespace, variant: str
) -> None:
    """One that only counts, one with half a mask, and comments in Latin-1."""
    latin = ("-m", "comment", "--comment", b"Z\xe4hler".decode(errors="surrogateescape"))
    theirs = ("-m", "comment", "--comment", "flanneld forward", "-j", "ACCEPT")
    for chain, *words in (
        ("INPUT",),
        ("FORWARD",),
        ("FORWARD", "-s", "10.1.0.5/255.255.0.255"),
        ("FORWARD", "-s", "10.1.0.0/16", *latin),
        ("FORWARD", "-s", str(OTHER.network), *latin, *theirs),
    ):
        namespace.run(["iptables", "-w", "20", "-A", chain, *words], check=True)

    def rules() -> list[str]:
        saved = namespace.run(["iptables-save"], check=True, errors="surrogateescape").stdout
        return [line for line in saved.split("\n") if line.startswith("-A")]

    before = rules()
    with kept(namespace) as firewall:
        assert firewall.report()["problems"] == []
        assert len(rules()) > len(before)
    assert rules() == before
    with kept(namespace, stale=OTHER.network):  # deleted in the bytes it was written in
        pass
    assert rules() == [line for line in before if str(OTHER.network) not in line]


# Trouble


@pytest.mark.parametrize(
    ("nftables", "program"), [(False, "iptables-restore"), (True, "nft")], ids=["iptables", "nft"]
)
def test_a_missing_tool_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, nftables: bool, program: str
) -> None:
    monkeypatch.setattr(tools, "_which", lambda _: None)
    with pytest.raises(FirewallError, match=f"{program} is not installed; apt-get install"):
        Firewall(POLICY, PORT, nftables=nftables, resync=1).__enter__()
    firewall = Firewall(replace(POLICY, masquerade=False), PORT, nftables=nftables, resync=1)
    with firewall:
        assert "going on without forward rules" in caplog.text
        assert firewall.report()["problems"] == [caplog.messages[0].rpartition(";")[0]]
        assert firewall.unready_reason == firewall.report()["problems"][0]
    caplog.clear()
    nothing = replace(POLICY, masquerade=False, forward=False)
    with Firewall(nothing, PORT, nftables=nftables, resync=1):
        assert caplog.text == ""


def test_a_tool_that_is_installed_later_is_used(
    namespace: Namespace,
    nftables: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    tries: list[str] = []
    with monkeypatch.context() as bare:
        bare.setattr(tools, "_which", tries.append)
        with kept(namespace, replace(POLICY, masquerade=False), nftables=nftables) as firewall:
            wait_until(lambda: len(tries) > 3, "several tries")
            assert firewall.unready_reason
            bare.undo()
            wait_until(lambda: firewall.unready_reason is None, "the rules coming into force")
            assert firewall.report()["problems"] == []
            assert text(namespace).count("flanneld forward") == 3 - nftables
        assert "flanneld" not in text(namespace)
    assert caplog.text.count("is not installed") == 1
    assert caplog.text.count("firewall rules: forward (") == 1
    assert "changed by another program" not in caplog.text


def test_a_refusal_quotes_the_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failing = tmp_path / "failing"
    failing.mkdir()
    for name in ("iptables-save", "iptables-restore"):
        (failing / name).write_text("#!/bin/sh\necho 'out of memory' >&2\nexit 3\n")
        (failing / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(failing), prepend=":")
    sentence = "cannot write firewall rules: iptables-restore says 'out of memory'"
    with pytest.raises(FirewallError, match=sentence):
        Firewall(POLICY, PORT, nftables=False, resync=1).__enter__()


def test_a_failing_check_and_its_end_are_logged_once(
    namespace: Namespace,
    variant: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    with kept(namespace, resync=0.01) as firewall:
        assert firewall._writer
        tool = firewall._writer
        apply: Callable[[Policy], Repair] = tool.apply
        tries: list[Policy] = []

        def fail(policy: Policy) -> Repair:
            tries.append(policy)
            raise FirewallError("cannot write firewall rules: no")

        monkeypatch.setattr(tool, "apply", fail)
        wait_until(lambda: len(tries) >= 3, "three failing checks")
        assert firewall.report()["problems"] == ["cannot write firewall rules: no"]
        monkeypatch.setattr(tool, "apply", apply)
        wait_until(lambda: "in place again" in caplog.text, "the end of the trouble in the log")
        assert firewall.report()["problems"] == []
    assert caplog.text.count("firewall rules: no; trying again") == 1


def test_rules_are_kept_after_an_error_of_our_own(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with kept(namespace, resync=0.01) as firewall:
        assert firewall._writer

        def fail(policy: Policy) -> Repair:
            raise RuntimeError("a bug")

        monkeypatch.setattr(firewall._writer, "apply", fail)
        wait_until(lambda: "the thread firewall starts again" in caplog.text, "the log line")
        whole = text(namespace)
        namespace.run(["iptables", "-F", "FLANNEL-FWD"], check=True)
        monkeypatch.undo()
        wait_until(lambda: text(namespace) == whole, "the rules being restored")
    assert "a bug" in caplog.text


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("nat -A POSTROUTING -s 10.1.5.0/24 ! -o docker0 -j MASQUERADE", "docker masquerades"),
        ("raw -A PREROUTING -d 10.1.5.2/32 ! -i docker0 -j DROP", "allow-direct-routing"),
    ],
    ids=["masquerades", "drops"],
)
@pytest.mark.parametrize("forward", [True, False], ids=["with our rules", "without"])
def test_harmful_rules_of_docker_are_logged_once(
    namespace: Namespace,
    nftables: bool,
    caplog: pytest.LogCaptureFixture,
    rule: str,
    words: str,
    forward: bool,
) -> None:
    policy = replace(POLICY, masquerade=False, forward=forward)
    with kept(namespace, policy, nftables=nftables) as firewall:
        damage(namespace, f"iptables -t {rule}")
        wait_until(lambda: words in "".join(firewall.report()["problems"]), "the rule being seen")
        damage(namespace, f"iptables -t {rule.replace('-A', '-D')}")
        wait_until(lambda: not firewall.report()["problems"], "the rule being seen gone")
    assert caplog.text.count(words) == 1


def test_a_drop_that_nftables_cannot_overrule_is_reported(
    namespace: Namespace, nftables: bool
) -> None:
    """As docker 28 writes it, whose FORWARD chain may accept."""
    damage(namespace, "iptables -N DOCKER", "iptables -A DOCKER ! -i docker0 -o docker0 -j DROP")
    with kept(namespace, nftables=nftables) as firewall:
        problems = "".join(firewall.report()["problems"])
    assert ("docker drops new connections to its containers" in problems) == nftables


def test_iptables_installed_later_is_read_beside_nftables(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    which = tools._which
    monkeypatch.setattr(tools, "_which", lambda name: which(name) if name == "nft" else None)
    with kept(namespace, nftables=True) as firewall:
        damage(namespace, "iptables -P FORWARD DROP")
        assert firewall.report()["problems"] == []
        monkeypatch.setattr(tools, "_which", which)
        wait_until(
            lambda: "cannot overrule it" in "".join(firewall.report()["problems"]),
            "the problem being reported",
        )


def test_a_dropping_forward_chain_without_accept_rules_is_reported(
    namespace: Namespace, nftables: bool, caplog: pytest.LogCaptureFixture
) -> None:
    nothing = replace(POLICY, masquerade=False, forward=False)
    with kept(namespace, nothing, nftables=nftables) as firewall:
        damage(namespace, "iptables -P FORWARD DROP")
        wait_until(lambda: firewall.report()["problems"], "the policy being seen")
        damage(namespace, "iptables -A FORWARD -s 10.0.0.0/8 -j ACCEPT")
        wait_until(lambda: not firewall.report()["problems"], "the rule being seen")
    assert caplog.text.count("--iptables-forward-rules=false") == 1
