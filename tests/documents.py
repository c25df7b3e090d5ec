"""The documents, and the shell commands in them."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
OPERATIONS = ROOT / "docs/operations.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

_INLINE = re.compile(r"`((?:[/\w.-]+/)?(?:flannel-udp|mk-docker-opts|make)\s[^`]*)`")
_BLOCK = re.compile(r"(<!-- run -->\n)?```sh\n(.*?)```", re.DOTALL)


def blocks(document: Path) -> list[tuple[bool, list[str]]]:
    """Of each shell block: whether it is marked to be run in a lab, and its lines."""
    found = _BLOCK.findall(document.read_text())
    return [(bool(marked), text.strip().splitlines()) for marked, text in found]


def command_lines() -> list[str]:
    """The commands in blocks and in sentences; ``show|set`` in a sentence stands for two."""
    found = [line for each in DOCUMENTS for _, lines in blocks(each) for line in lines]
    for each in DOCUMENTS:
        for command in _INLINE.findall(each.read_text()):
            choices = [word.split("|") for word in " ".join(command.split()).split(" ")]
            found += [" ".join(words) for words in itertools.product(*choices)]
    return list(dict.fromkeys(found))
