"""Environments of the peers, made when they are first wanted from pinned requirements. Not here: what runs in them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def interpreter(name: str) -> str:
    """The Python of a peer's environment, which is made anew once its requirements have changed."""
    wanted = Path(__file__).parent / "requirements" / f"{name}.txt"
    place = ROOT / ".peers" / name
    python, made_of = place / "bin" / "python", place / "made-of.txt"
    if not made_of.exists() or made_of.read_text() != wanted.read_text():
        uv = str(Path(sys.executable).with_name("uv"))
        for words in (["venv", "--quiet", "--clear", "--python", sys.executable, str(place)],
                      ["pip", "install", "--quiet", "--python", str(python), "-r", str(wanted)]):
            subprocess.run([uv, *words], check=True, timeout=300)
        made_of.write_text(wanted.read_text())
    return str(python)
