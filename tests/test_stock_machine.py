"""tools/stock-machine refuses what it cannot do with one sentence, before it installs anything."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from documents import ROOT

NOBODY = ("setpriv", "--reuid=65534", "--clear-groups")


@pytest.mark.parametrize(
    ("arguments", "prefix", "sentence"),
    [
        (
            ("sarge", "true"),
            (),
            "it cannot make a Debian called 'sarge': choose bookworm, trixie, ",
        ),
        (("trixie",), (), "name the suite and the command, such as: tools/stock-machine trixie "),
        ((), (), "name the suite and the command, such as: tools/stock-machine trixie "),
        (("trixie", "true"), NOBODY, "it mounts file systems: run it as root"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: tuple[str, ...], prefix: tuple[str, ...], sentence: str, tmp_path: Path
) -> None:
    script = (ROOT / "tools/stock-machine").read_text()  # nobody may be unable to read the checkout
    environment = {**os.environ, "STOCK_CACHE": str(tmp_path / "cache")}
    command = [*prefix, "bash", "-c", script, "stock-machine", *arguments]
    result = subprocess.run(
        command, cwd="/", env=environment, capture_output=True, text=True, timeout=30
    )
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"stock-machine: {sentence}")
    assert (result.returncode, result.stdout) == (1, "")
    assert not (tmp_path / "cache").exists()
