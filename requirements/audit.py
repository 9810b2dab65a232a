"""Compares the pinned packages with the known vulnerabilities: part of ``make check``.

A vulnerability fails the check, unless ``pyproject.toml`` accepts it with a reason. Where no database of
vulnerabilities can be reached, one line says so, and the check succeeds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FILES = (HERE / "run.txt", HERE / "dev.txt")
SERVICES = ("pypi", "osv")
_SERVICE_SECONDS = 180


class Unreachable(Exception):
    """A service gave no data."""


@dataclass(frozen=True)
class Finding:
    """A known vulnerability of a pinned package; ``names`` are all the numbers it is published under."""

    package: str
    names: frozenset[str]
    fixed_in: tuple[str, ...]


def read_accepted(project: Path) -> dict[str, str]:
    """The accepted vulnerabilities of a ``pyproject.toml``, with their reasons. Raises SystemExit without a reason."""
    settings = tomllib.loads(project.read_text(encoding="utf-8"))
    accepted = settings.get("tool", {}).get("sync-orchestrator", {}).get("accepted-vulnerabilities", {})
    for name, reason in accepted.items():
        if not isinstance(reason, str) or not reason.strip():
            raise SystemExit(f"{project}: {name} is accepted without a reason: write why it does not concern us")
    return dict(accepted)


def read_report(text: str) -> tuple[list[Finding], int, int]:
    """The findings of a report of pip-audit, and the numbers of packages that were compared and not compared.

    Raises:
        Unreachable: The report is none, or no package was compared.
    """
    try:
        packages: list[dict[str, Any]] = json.loads(text)["dependencies"]
    except (ValueError, KeyError, TypeError):
        raise Unreachable("it gave no report") from None
    skipped = [package["skip_reason"] for package in packages if "skip_reason" in package]
    if len(skipped) == len(packages):
        raise Unreachable(skipped[0] if skipped else "it knows no package")
    found = [
        Finding(
            f"{package['name']} {package['version']}",
            frozenset([each["id"], *each["aliases"]]),
            tuple(each["fix_versions"]),
        )
        for package in packages
        for each in package.get("vulns", ())
    ]
    return found, len(packages) - len(skipped), len(skipped)


def ask_service(service: str) -> tuple[list[Finding], int, int]:
    """Runs pip-audit with one database of vulnerabilities; returns what ``read_report`` does, and raises the same."""
    with tempfile.NamedTemporaryFile("r", suffix=".json", encoding="utf-8") as report:
        files = [word for file in FILES for word in ("-r", str(file))]
        try:
            ended = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "pip_audit",
                    "--disable-pip",
                    "--require-hashes",
                    "--progress-spinner",
                    "off",
                    "--timeout",
                    "10",
                    "-s",
                    service,
                    "-f",
                    "json",
                    "-o",
                    report.name,
                    *files,
                ],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_SERVICE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Unreachable(f"it took longer than {_SERVICE_SECONDS} s") from None
        text = report.read()
    if not text:
        last = ended.stderr.strip().splitlines()[-1:] or ["no output"]
        raise Unreachable(last[0][:200])
    return read_report(text)


def judge(found: list[Finding], accepted: dict[str, str]) -> list[str]:
    """The lines for the findings that are not accepted."""
    return [
        f"{each.package}: {', '.join(sorted(each.names))}; fixed in: {', '.join(each.fixed_in) or 'no version yet'}"
        for each in found
        if not each.names & accepted.keys()
    ]


def main() -> int:
    """Returns the exit status: 1 for a vulnerability that is not accepted."""
    if find_spec("pip_audit") is None:
        sys.exit("pip-audit is not installed: run make .venv/dev")
    accepted = read_accepted(HERE.parent / "pyproject.toml")
    reasons = []
    for service in SERVICES:
        try:
            found, compared, skipped = ask_service(service)
        except Unreachable as error:
            reasons.append(f"{service}: {error}")
            continue
        lines = judge(found, accepted)
        for line in lines:
            print(line, file=sys.stderr)
        if lines:
            print(
                f"Fix: raise the versions (make requirements), or accept one with a reason under "
                f"[tool.sync-orchestrator.accepted-vulnerabilities] in {HERE.parent / 'pyproject.toml'}",
                file=sys.stderr,
            )
        print(
            f"pip-audit: {compared} packages compared ({service}), {skipped} unknown there, "
            f"{len(found) - len(lines)} vulnerabilities accepted, {len(lines)} not accepted"
        )
        return 1 if lines else 0
    print(f"SKIPPED pip-audit: no database of vulnerabilities can be reached ({'; '.join(reasons)})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
