"""Installs the wheel into a clean environment and tries it there: ``make test-wheel``.

First the plain install, in which modules of an extra may fail to import, but only for the package of that extra; then
all extras, with which every module imports. Versions are those of ``requirements/run.txt``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
PACKAGE = "sync_orchestrator"
EXTRAS = {
    f"{PACKAGE}.brokers.kombu_queue": "kombu",
    f"{PACKAGE}.brokers.redis_queue": "redis",
    f"{PACKAGE}.capture.binlog_connection": "pymysql",
    f"{PACKAGE}.capture.binlog_reader": "pymysqlreplication",
}
"""Modules that import the package of an extra at their beginning; others import them only when it is needed."""

NOT_IMPORTED = {f"{PACKAGE}.database.migrations.env", f"{PACKAGE}.__main__"}
"""Alembic runs the first one, Python the second one."""

INIT_OPTIONS = {
    "--entity": "product",
    "--key": "sku",
    "--version": "updated_at",
    "--group": "shop",
    "--fields": "name,price",
    "--source-url": "https://backoffice.example.com",
    "--source-path": "/products",
    "--source-items": "products",
    "--groups-path": "/shops",
    "--third-party-url": "https://partner.example.com",
    "--third-party-path": "/items",
    "--third-party-items": "data",
}

IMPORT_ALL = """
import importlib, json, sys
failed = {}
for name in json.load(sys.stdin):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        failed[name] = error.name
print(json.dumps(failed))
"""


def package_files() -> set[str]:
    """The files that a wheel must have, by their paths in it."""
    folder = PROJECT / PACKAGE
    return {
        path.relative_to(PROJECT).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def modules_of(files: Iterable[str]) -> list[str]:
    """The modules to import; migrations have names that only Alembic can load."""
    names = {
        file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for file in files
        if file.endswith(".py") and "/migrations/versions/" not in file
    }
    return sorted(names - NOT_IMPORTED)


def require_files(wanted: set[str], archive: Path, found: Iterable[str]) -> None:
    """Ends the program where an archive lacks files."""
    if missing := sorted(wanted - set(found)):
        sys.exit(f"{archive.name} lacks {len(missing)} files: {', '.join(missing[:10])}")
    print(f"{archive.name}: has all {len(wanted)} files")


class Environment:
    """A clean environment in a folder, with an empty working directory beside it."""

    def __init__(self, folder: Path) -> None:
        self._bin = folder / "environment" / ("Scripts" if os.name == "nt" else "bin")
        self._work = folder / "work"
        self._work.mkdir()
        self._constraints = folder / "constraints.txt"
        pins = (PROJECT / "requirements" / "run.txt").read_text(encoding="utf-8")
        # pip refuses hashes here: the wheel itself has none
        names = re.findall(r"(?m)^([A-Za-z0-9._-]+)(?:\[[^]]*\])?(==[^\s\\]+(?: ; [^\\\n]*)?)", pins)
        self._constraints.write_text("\n".join(name + version for name, version in names) + "\n")
        venv.create(self._bin.parent, with_pip=True)

    def install(self, wheel: Path, extra: str = "") -> None:
        """Installs the wheel, with an extra such as ``[all]``."""
        self.run("python", "-m", "pip", "install", "--quiet", "-c", str(self._constraints), f"{wheel}{extra}")

    def run(self, program: str, *words: str, text: str | None = None) -> str:
        """Runs a program of the environment in the empty folder; ends this program where it fails."""
        own = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SYNC_", "PYTHON", "VIRTUAL_ENV", "DAGSTER_"))
        }
        done = subprocess.run(
            [str(self._bin / program), *words],
            cwd=self._work,
            env=own,
            input=text,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        if done.returncode:
            sys.exit(
                f"{program} {' '.join(words)[:80]} ended with status {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    def import_all(self, modules: list[str]) -> dict[str, str]:
        """Imports modules; returns those that lack a package, with its name."""
        failed: dict[str, str] = json.loads(
            self.run("python", "-c", IMPORT_ALL, text=json.dumps(modules)).splitlines()[-1]
        )
        return failed


def main() -> None:
    """Tries the newest wheel and source distribution in ``dist``."""
    [wheel], [source] = ([*(PROJECT / "dist").glob(f"{PACKAGE}-*{end}")] for end in (".whl", ".tar.gz"))
    files = package_files()
    with zipfile.ZipFile(wheel) as packed:
        require_files(files, wheel, packed.namelist())
    with tarfile.open(source) as packed_source:
        names = {name.partition("/")[2] for name in packed_source.getnames()}
        require_files(files | {"pyproject.toml", "README.md", "LICENSE"}, source, names)
    modules = modules_of(files)
    with tempfile.TemporaryDirectory(prefix="sync-wheel-") as folder:
        environment = Environment(Path(folder))
        environment.install(wheel)
        for words in (["--help"], ["init", "--yes", *chain(*INIT_OPTIONS.items())], ["check"]):
            print(environment.run("sync-orchestrator", *words).strip().splitlines()[-1])
        failed = environment.import_all(modules)
        if failed != EXTRAS:
            sys.exit(f"plain install: these modules lack a package: {failed}; expected: {EXTRAS}")
        print(f"plain install: {len(modules) - len(failed)} modules imported, {len(failed)} need an extra")
        environment.install(wheel, "[all]")
        if failed := environment.import_all(modules):
            sys.exit(f"all extras: these modules lack a package: {failed}")
        print(f"all extras: {len(modules)} modules imported")
    print("The wheel works in a clean environment.")


if __name__ == "__main__":
    main()
