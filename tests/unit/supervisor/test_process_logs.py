"""Logs of the programs of a running system: what is kept of them, and that they stay small."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sync_orchestrator.supervisor import process_tree
from sync_orchestrator.supervisor.process_tree import ProgramEnded, Tree


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    made = Tree(tmp_path / "logs", {})
    yield made
    made.stop()
    made.dismiss_guard()


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_log_that_has_become_large_is_moved_aside_while_its_program_writes(tree: Tree, tmp_path: Path) -> None:
    """And written on from its beginning; of the old ones two are kept."""
    logs = tmp_path / "logs"
    go = tmp_path / "go"
    writer = (
        "import pathlib, sys, time\ngo = pathlib.Path(sys.argv[1])\n"
        "for n in range(5):\n"
        "    print(f'{n}' * 1000, flush=True)\n"
        "    while not go.with_suffix(f'.{n}').exists(): time.sleep(0.01)\n"
    )
    program = tree.start_program("writer", [sys.executable, "-c", writer, str(go)])
    for n in range(5):
        ends = time.monotonic() + 20
        while program.log.stat().st_size < 1000:
            assert time.monotonic() < ends
            time.sleep(0.01)
        program.trim_log(2000)
        assert program.log.stat().st_size == 1001  # small enough yet
        program.trim_log(1000)
        assert program.log.stat().st_size == 0
        go.with_suffix(f".{n}").touch()
    program.process.wait(20)
    assert contents(logs) == ["writer.log", "writer.log.1", "writer.log.2"]
    assert [(logs / f"writer.log.{age}").read_text()[0] for age in (1, 2)] == ["4", "3"]


def test_the_logs_of_the_times_before_are_kept(tree: Tree, tmp_path: Path) -> None:
    for n in range(4):
        program = tree.start_program("speaker", [sys.executable, "-c", f"print({n})"])
        program.process.wait(20)
    assert contents(tmp_path / "logs") == ["speaker.log", "speaker.log.1", "speaker.log.2"]
    assert [(tmp_path / "logs" / name).read_text().strip() for name in contents(tmp_path / "logs")] == ["3", "2", "1"]


def test_a_system_that_is_looked_at_keeps_its_logs_small(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_tree.Program.trim_log, "__defaults__", (10,))
    program = tree.start_program("speaker", [sys.executable, "-c", "print('x' * 100)"])
    program.process.wait(20)
    with pytest.raises(ProgramEnded):
        tree.check_programs()
    assert program.log.stat().st_size == 0
