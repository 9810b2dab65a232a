"""Installs the third parties from their registries into ``.third-parties``, which git ignores; most need npm.

``python tests/third_parties/installing.py [NAME ...]``. Each file in ``packages`` is one third party: a ``.txt`` of pip
or a ``package.json`` of npm. An installed third party is left as it is until its file changes.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGES = HERE / "packages"
PLACE = HERE.parent.parent / ".third-parties"
_DONE = "installed"


def install(names: Sequence[str] = ()) -> None:
    """Installs the named third parties, by default all.

    Raises SystemExit if a name is unknown or a tool is missing, CalledProcessError if an installation fails.
    """
    files = {file.stem: file for file in sorted(PACKAGES.iterdir())}
    if unknown := [name for name in names if name not in files]:
        raise SystemExit(f"unknown third party '{unknown[0]}'; expected one of: {', '.join(files)}")
    for name in names or files:
        _install_one(name, files[name])


def _install_one(name: str, packages: Path) -> None:
    """Installs what the file names, unless exactly that is installed."""
    folder = PLACE / name
    wanted = hashlib.sha256(packages.read_bytes() + (HERE / ".npmrc").read_bytes()).hexdigest()
    done = folder / _DONE
    if done.exists() and done.read_text() == wanted:
        return
    began = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (_install_with_pip if packages.suffix == ".txt" else _install_with_npm)(folder, packages)
    done.write_text(wanted)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    print(f"{name}: {time.monotonic() - began:.0f} s, {size / 1e6:.0f} MB", flush=True)


def _install_with_pip(folder: Path, packages: Path) -> None:
    _run(sys.executable, "-m", "venv", folder)
    _run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", packages)


def _install_with_npm(folder: Path, packages: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit(f"{folder.name} needs Node.js 20 or newer with npm; install them and try again")
    shutil.copy(packages, folder / "package.json")
    shutil.copy(HERE / ".npmrc", folder)
    _run(
        npm,
        "install",
        "--prefix",
        folder,
        "--no-package-lock",
        "--no-audit",
        "--no-fund",
        "--ignore-scripts",
        "--loglevel",
        "error",
    )


def _run(*words: str | Path) -> None:
    subprocess.run([str(word) for word in words], check=True)


if __name__ == "__main__":
    install(sys.argv[1:])
