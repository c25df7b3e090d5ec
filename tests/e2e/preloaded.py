"""Starts daemons at the same moment, from processes that have imported all modules.

Most of a start is the import of modules, whose duration varies between two processes. Here one
process in the host's namespace imports them once and forks a child, the daemon, for each start.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import signal
import subprocess
import sys
from typing import IO

from flannel_udp.lab.etcd import child_environment
from flannel_udp.lab.lab import Host

START, STOP = b"start\n", b"stop\n"


class Preloaded:
    """The process for one host, and the child that it has forked."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def __enter__(self) -> Preloaded:
        host = self._host
        command = [sys.executable, __file__, *host.daemon_command()[3:]]  # the flags
        with host.log_path.open("ab") as log:
            host.daemon = host.netns.popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=child_environment(host.manager.environment),
            )
        assert host.daemon.stdin
        assert host.daemon.stdout
        self._commands: IO[bytes] = host.daemon.stdin
        self._answers: IO[bytes] = host.daemon.stdout
        assert self._answers.readline() == b"imported\n"
        return self

    def __exit__(self, *_: object) -> None:
        self._commands.close()

    def start(self) -> None:
        """Returns at once; ``host.wait_until_ready`` waits."""
        self._send(START)

    def begin_stop(self) -> None:
        self._send(STOP)

    def exit_code(self) -> int:
        """Waits for the end of the child and returns its exit code."""
        return int(self._answers.readline())

    def _send(self, command: bytes) -> None:
        self._commands.write(command)
        self._commands.flush()


def serve() -> None:
    """Runs in the namespace: reads commands from stdin and prints exit codes."""
    import flannel_udp
    from flannel_udp.cli import main as cli

    for module in pkgutil.walk_packages(flannel_udp.__path__, "flannel_udp."):
        if not module.name.startswith(("flannel_udp.__", "flannel_udp.lab")):
            importlib.import_module(module.name)
    print("imported", flush=True)
    child = 0
    for command in sys.stdin.buffer:
        if command == START:
            child = os.fork()
            if not child:
                os.close(0)
                os._exit(cli.main(sys.argv[1:]))
        else:
            os.kill(child, signal.SIGTERM)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
