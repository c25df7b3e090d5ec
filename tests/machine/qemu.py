"""A virtual machine on the lab's underlay: Debian with systemd, docker and a kernel without vxlan.

QEMU emulates its processor, so that it runs where KVM does not. Two processors would cost a third
more of this machine's time.
"""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from etcd_server import wait_until
from machine.guest_agent import PORT, GuestAgent
from machine.stopwatch import timed

from flannel_udp.lab.lab import Lab

_CHECKOUT = "/root/checkout"  # where tools/machine-image puts it
_UP_WITHIN = 400.0  # seconds
_LOOK = 10.0  # seconds in which an agent that is there answers
_TAP = "machine"
_KERNEL = (
    "root=/dev/vda rw console=ttyS0 net.ifnames=0 audit=0 mitigations=off tsc=reliable"
    " modprobe.blacklist=ahci systemd.log_color=0 systemd.show_status=0"
)


class Machine:
    """Runs the image in ``folder``, which tools/machine-image made, from entry to exit."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self._lab = lab
        self._folder = folder
        self._process: subprocess.Popen[Any] | None = None
        self._agent: GuestAgent | None = None
        self._boot = ""

    def __enter__(self) -> Self:
        switch = self._lab.switch
        switch.run(["ip", "tuntap", "add", _TAP, "mode", "tap"], check=True)
        switch.set_link(_TAP, master="underlay", state="up")
        self._process = switch.popen(self._command())
        try:
            socket = self._folder / "agent"
            wait_until(lambda: self._has_ended() or socket.exists(), "QEMU being up")
            self._agent = GuestAgent(socket)
            with timed("boot"):
                self._wait_until_up()
        except BaseException:
            print(self.console)
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._agent is not None:
            self._agent.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @property
    def console(self) -> str:
        path = self._folder / "console"
        return path.read_text(errors="replace") if path.exists() else ""

    def run(self, command: str, timeout: float = 180) -> subprocess.CompletedProcess[str]:
        """Runs a shell command as root in the checkout."""
        assert self._agent
        return self._agent.run(f"cd {_CHECKOUT}; {command}", timeout)

    def run_all(self, *commands: str) -> str:
        """Returns the output of the commands; each of them must succeed."""
        output = ""
        for command in commands:
            result = self.run(command)
            if result.returncode:
                journal = self.run("journalctl --boot --lines=60").stdout
                raise AssertionError(f"{command}: {result.stdout}{result.stderr}\n{journal}")
            output += result.stdout
        return output

    def reboot(self) -> None:
        """Returns when systemd has started everything again."""
        assert self._agent
        self._agent.start("systemctl reboot")
        self._wait_until_up()

    def _wait_until_up(self) -> None:
        """Until the systemd of another boot than the last one has nothing left to start."""
        last = self._boot
        wait_until(lambda: self._current_boot() not in ("", last), "the boot", _UP_WITHIN)
        self._boot = self._current_boot()
        state = self.run("systemctl is-system-running --wait", _UP_WITHIN).stdout
        assert state == "running\n", f"{state}{self.run('systemctl --failed').stdout}"

    def _current_boot(self) -> str:
        """The boot's ID; empty if no agent answers."""
        assert self._agent
        assert not self._has_ended()
        with suppress(OSError):
            self._agent.greet(_LOOK)
            return self._agent.run("cat /proc/sys/kernel/random/boot_id", _LOOK).stdout
        return ""

    def _has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _command(self) -> list[str]:
        folder = self._folder
        return [
            *("qemu-system-x86_64", "-accel", "tcg", "-machine", "q35"),
            *("-cpu", "Nehalem", "-m", "1024", "-nodefaults", "-display", "none"),
            *("-kernel", f"{folder}/vmlinuz", "-initrd", f"{folder}/initrd", "-append", _KERNEL),
            *("-drive", f"file={folder}/disk.img,if=virtio,format=raw,cache=unsafe"),
            *("-netdev", f"tap,id=eth0,ifname={_TAP},script=no,downscript=no"),
            *("-device", "virtio-net-pci,netdev=eth0,romfile="),
            *("-serial", f"file:{folder}/console", "-device", "virtio-serial"),
            *("-chardev", f"socket,id=agent,path={folder}/agent,server=on,wait=off"),
            *("-device", f"virtserialport,chardev=agent,name={PORT}"),
        ]
