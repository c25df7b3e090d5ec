"""The pictures in docs/ show what the programs print; ``make screens`` updates them.

Real programs run in terminals beside a real lab, and rich draws what stands on their screens. Two
pictures are alike if they hold the same lines, less the figures and names that differ between runs.
"""

from __future__ import annotations

import io
import re
import signal
import subprocess
import sys
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from xml.etree import ElementTree

import pyte
import pytest
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.style import Style
from rich.text import Text
from terminal import Terminal

from flannel_udp.host.netns import Namespace
from flannel_udp.lab import record as lab_record
from flannel_udp.lab.record import LabRecord

DOCS = Path(__file__).parents[2] / "docs"
PROGRAM = (sys.executable, "-m", "flannel_udp")
NAMES = ("lab", "status", "top")
LAST_LINE = "The lab stays up until Ctrl-C."
WIDE, HIGH = 104, 120  # the lab's terminal: no line wraps or scrolls out
OFFLOAD = "(TSO|USO|UDP GSO|UDP GRO)"
COLORS = {"default": None, "brown": "yellow"}  # pyte's names -> rich's


@dataclass(frozen=True)
class Demo:
    """A running ``flannel-udp lab --keep``: its output and its record."""

    lines: list[Text]
    record: LabRecord

    @property
    def hints(self) -> list[str]:
        """The commands that it suggests."""
        printed = [line.plain.strip() for line in self.lines]
        return printed[printed.index("To look inside, in another terminal:") + 1 :]

    def in_host(self, *words: str) -> list[str]:
        flag = f"--subnet-file={self.record.directory}/host1/subnet.env"
        return ["ip", "netns", "exec", f"{self.record.prefix}host1", *PROGRAM, *words, flag]

    @contextmanager
    def traffic(self) -> Iterator[None]:
        """Packets from the first host's container to the second's and, fewer, to the third's."""
        own, second = (Namespace(f"{self.record.prefix}host{number}-c1") for number in (1, 2))
        table = "\n".join(line.plain for line in self.lines)
        addresses = re.findall(r"host[23]-c1 .* (10\.1\.[\d.]+)", table)
        server = second.popen(["iperf3", "-s", "--forceflush"], stdout=subprocess.PIPE, text=True)
        assert server.stdout
        while "Server listening" not in server.stdout.readline():
            pass
        talks = [
            server,
            own.popen(
                ["iperf3", "-c", addresses[0], "-b", "50M", "-t", "100"], stdout=subprocess.DEVNULL
            ),
            own.popen(["ping", "-i", "0.01", addresses[1]], stdout=subprocess.DEVNULL),
        ]
        try:
            yield
        finally:
            for talk in talks:
                talk.kill()
                talk.communicate()


@pytest.fixture(scope="module")
def demo(network_rights: None) -> Iterator[Demo]:
    # As users see it: this run of the tests has a directory of its own for temporary files.
    with screen_of(["env", "TMPDIR=/tmp", *PROGRAM, "lab", "--keep"], WIDE, HIGH) as terminal:
        terminal.wait_for(lambda text: LAST_LINE in text, "the whole demo", 60)
        lines = rows(terminal.screen)
        end = [line.plain for line in lines].index(LAST_LINE)
        (record,) = (each for each in lab_record.read_all() if each.owner == terminal.process.pid)
        yield Demo(lines[:end], record)


@pytest.fixture(scope="module")
def pictures(demo: Demo) -> dict[str, str]:
    """The current screen of each program, as SVG."""
    shown = {"lab": demo.lines}
    with demo.traffic(), screen_of(demo.in_host("top", "--interval=0.2")) as top:
        top.wait_for(Filled(), "traffic")
        shown["top"] = rows(top.screen)
    with screen_of(demo.in_host("status")) as status:
        assert status.finish() == 0
        shown["status"] = rows(status.screen)
    return {name: drawn(name, lines) for name, lines in shown.items()}


@contextmanager
def screen_of(argv: Sequence[str], columns: int = 80, lines: int = 24) -> Iterator[Terminal]:
    terminal = Terminal(argv, columns, lines)
    try:
        yield terminal
    finally:
        terminal.process.send_signal(signal.SIGTERM)  # the lab cleans up then
        terminal.finish()
        terminal.close()


class Filled:
    """Whether the sparklines have their full length: they did not grow for a second."""

    def __init__(self) -> None:
        self._counts = deque([0] * 10, maxlen=10)  # a sample takes a tenth of a second

    def __call__(self, text: str) -> bool:
        self._counts.append(len(re.findall("[▁-█]", text)))
        return 0 < self._counts[0] == self._counts[-1]


def rows(screen: pyte.Screen) -> list[Text]:
    """The lines of the screen, with their colours, less the empty ones at the end."""
    lines = []
    for y in range(screen.lines):
        cells = [screen.buffer[y][x] for x in range(screen.columns)]
        line = Text()
        for (color, bold), run in groupby(cells, lambda cell: (cell.fg, cell.bold)):
            style = Style(color=COLORS.get(color, color), bold=bold)
            line.append("".join(cell.data for cell in run), style)
        line.rstrip()
        lines.append(line)
    while not lines[-1].plain:
        lines.pop()
    return lines


def drawn(name: str, lines: list[Text]) -> str:
    width = max(80, *map(len, lines))
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    for line in lines:
        console.print(line, no_wrap=True, crop=False)
    form = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)  # not fetched
    return console.export_svg(title=f"flannel-udp {name}", unique_id=name, code_format=form)


def words(svg: str) -> list[list[str]]:
    """The words of each line, without what differs between runs."""
    lines: dict[int, list[str]] = defaultdict(list)
    for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        if found := re.search(r"line-(\d+)", text.get("clip-path", "")):
            lines[int(found[1])].append(text.text or "")
    return [plain(" ".join(" ".join(parts).split())).split() for _, parts in sorted(lines.items())]


def plain(line: str) -> str:
    line = re.sub(r"fl[a-z0-9]{4}-|flannel-udp-lab-[^/]+", "NAME", line)
    line = re.sub(r"\S+/flannel-udp", "flannel-udp", line)
    line = re.sub("[▁-█]+", "", re.sub("[─]+", "─", line))
    line = re.sub(f"{OFFLOAD}(, {OFFLOAD})*", "OFFLOADS", line)  # the kernel's
    line = re.sub(r"\d+(,\d+)*(\.\d+)*", "N", line)
    line = re.sub(r"N( d| h| min| s)( N (h|min|s))?\b", "TIME", line)
    return re.sub(r"N [kMGT]?(B|bit)", r"N \1", line)


@pytest.mark.parametrize("name", NAMES)
def test_picture_shows_what_the_program_prints(
    name: str, pictures: dict[str, str], pytestconfig: pytest.Config
) -> None:
    path = DOCS / f"{name}.svg"
    if pytestconfig.getoption("--write-screens"):
        path.write_text(pictures[name])
    assert words(path.read_text()) == words(pictures[name]), "run make screens to update them"


def test_commands_that_the_lab_suggests_work(demo: Demo) -> None:
    promises = [
        r"10\.1\.0\.0/16 dev flannel0",  # ip route
        r"IP 10\.1\.\d+\.2.* > 10\.1\.\d+\.2",  # tcpdump
        r"64 bytes from 10\.1\.",  # ping
        r"172\.30\.0\.3 +lease",  # lease list
        r"INFO forwarding: ",  # tail
    ]
    with demo.traffic():
        for hint, promise in zip(demo.hints, promises, strict=True):
            with screen_of(["sh", "-c", f"exec {hint}"], WIDE, HIGH) as terminal:
                terminal.wait_for(partial(re.search, promise), f"{promise}, typing {hint}")
