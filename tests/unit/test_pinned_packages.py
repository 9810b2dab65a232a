"""The pinned packages: each has its hashes, and a known vulnerability fails the check unless it is accepted."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from paths import ROOT

FILES = sorted(
    [
        *ROOT.glob("requirements/*.txt"),
        *ROOT.glob("bench/peers/requirements/*.txt"),
        *ROOT.glob("tests/third_parties/*.txt"),
    ]
)


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    found = importlib.util.spec_from_file_location("audit", ROOT / "requirements" / "audit.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["audit"] = module  # dataclasses look their module up
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_package_has_a_version_and_hashes(file: Path) -> None:
    text = re.sub(r"(?m)^\s*#.*\n", "", file.read_text()).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip()]
    assert lines
    for line in lines:
        assert re.match(r"[A-Za-z0-9._-]+(\[[a-z0-9,._-]+\])?==[^ ]+ ", line), line
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", line), line
    assert "://" not in text
    assert "--index-url" not in text


def test_make_compares_the_hashes_and_builds_with_nothing_else() -> None:
    makefile = (ROOT / "Makefile").read_text()
    installs = re.findall(r"(?m)^\t\$\(INSTALL\) (.*)$", makefile)
    assert len(installs) == 3
    for line in installs:
        assert ("--require-hashes" in line) if "-r " in line else ("--no-deps --no-build-isolation" in line)
    assert len(re.findall(r"pip install", makefile)) == 1
    assert len(re.findall(r"uv pip compile", makefile)) == len(re.findall("--generate-hashes", makefile)) == 1


def report(*packages: dict[str, Any]) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


CLEAN = {"name": "clean", "version": "1", "vulns": []}
HOLED = {
    "name": "holed",
    "version": "1.2",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-2026-1"], "fix_versions": ["1.3"], "description": "…"}],
}
UNKNOWN = {"name": "unknown", "skip_reason": "not found: unknown"}


def run_with(audit: ModuleType, monkeypatch: pytest.MonkeyPatch, accepted: dict[str, str], **reports: str) -> int:
    def ask(service: str) -> Any:
        if service not in reports:
            raise audit.Unreachable("no network")
        return audit.read_report(reports[service])

    monkeypatch.setattr(audit, "ask_service", ask)
    monkeypatch.setattr(audit, "find_spec", lambda name: object())
    monkeypatch.setattr(audit, "read_accepted", lambda project: accepted)
    return int(audit.main())


def test_a_known_vulnerability_fails_the_check_unless_it_is_accepted(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_with(audit, monkeypatch, {}, pypi=report(CLEAN, HOLED)) == 1
    said = capsys.readouterr()
    assert "holed 1.2: CVE-2026-1, PYSEC-1; fixed in: 1.3" in said.err
    assert "accepted-vulnerabilities" in said.err
    assert run_with(audit, monkeypatch, {"CVE-2026-1": "not used"}, pypi=report(CLEAN, HOLED)) == 0
    assert "1 vulnerabilities accepted" in capsys.readouterr().out


def test_without_data_the_check_says_in_one_line_that_it_was_skipped(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A service that knows not a single package gave no data."""
    assert run_with(audit, monkeypatch, {}, pypi=report(UNKNOWN)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "SKIPPED pip-audit: no database of vulnerabilities can be reached (pypi: not found: unknown; osv: no network)"
    ]
    assert run_with(audit, monkeypatch, {}, pypi=report(UNKNOWN), osv=report(HOLED)) == 1


def test_an_acceptance_needs_a_reason(audit: ModuleType, tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text('[tool.sync-orchestrator.accepted-vulnerabilities]\nCVE-1 = "only on Windows"\n')
    assert audit.read_accepted(project) == {"CVE-1": "only on Windows"}
    project.write_text('[tool.sync-orchestrator.accepted-vulnerabilities]\nCVE-1 = " "\n')
    with pytest.raises(SystemExit, match="CVE-1 is accepted without a reason"):
        audit.read_accepted(project)
    assert audit.read_accepted(ROOT / "pyproject.toml") == {}
