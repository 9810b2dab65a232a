"""Installs the third parties from their registries into ``.third-parties``, which git ignores; needs npm for one.

``python tests/third_parties/installing.py``. Harmless to repeat: what is there in these versions stays. Not here:
running them (``servers.py``).
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
PLACE = HERE.parent.parent / ".third-parties"
DATASETTE = PLACE / "datasette"
PARSE_SERVER = PLACE / "parse-server"
_DONE = "installed"


def install() -> None:
    """Raises SystemExit where a tool is missing, CalledProcessError where it fails."""
    _in(DATASETTE, [HERE / "datasette.txt"], _datasette)
    _in(PARSE_SERVER, [HERE / "package.json", HERE / ".npmrc"], _parse_server)


def _datasette() -> None:
    _run(sys.executable, "-m", "venv", DATASETTE)
    _run(DATASETTE / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         "-r", DATASETTE / "datasette.txt")


def _parse_server() -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("parse-server needs Node.js 20 or newer with npm; install them and try again")
    _run(npm, "install", "--prefix", PARSE_SERVER, "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts",
         "--loglevel", "error")


def _in(folder: Path, named: list[Path], install: Callable[[], None]) -> None:
    """Installs what the files name, unless just that is in the folder already."""
    wanted = hashlib.sha256(b"".join(file.read_bytes() for file in named)).hexdigest()
    done = folder / _DONE
    if done.exists() and done.read_text() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in named:
        shutil.copy(file, folder)
    install()
    done.write_text(wanted)


def _run(*words: str | Path) -> None:
    subprocess.run([str(word) for word in words], check=True)


if __name__ == "__main__":
    install()
