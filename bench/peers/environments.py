"""The environments of the peers: one each under ``.peers/``, made when it is first needed, of pinned packages."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
_PLACE = HERE.parent.parent / ".peers"


def python_of(name: str) -> Path:
    """The interpreter with what ``requirements/<name>.txt`` names."""
    wanted = HERE / "requirements" / f"{name}.txt"
    folder = _PLACE / f"{name}-{hashlib.sha256(wanted.read_bytes()).hexdigest()[:8]}"
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        uv = str(Path(sys.executable).with_name("uv"))
        for words in (
            ["venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
            ["pip", "install", "--quiet", "--python", str(python), "-r", str(wanted)],
        ):
            subprocess.run([uv, *words], check=True, timeout=300)
        (folder / "made").touch()
    return python


def told_by(name: str, program: str, *words: str, timeout: float = 300) -> dict[str, Any]:
    """What a program of this folder prints as JSON on its last line, run in that environment.

    Raises CalledProcessError, TimeoutExpired.
    """
    ended = subprocess.run(
        [python_of(name), HERE / program, *words], check=True, capture_output=True, text=True, timeout=timeout
    )
    told: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return told
