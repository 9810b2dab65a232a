"""The private parts of Dagster that the project uses: which of them broke when Dagster is raised, and where they are.

Nothing of ``resources/instance`` is imported here: each part is looked for by itself, so that one that is gone does
not hide the others.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import sync_orchestrator

PACKAGE = Path(sync_orchestrator.__file__).parent
PRIVATE_FOLDER = PACKAGE / "resources" / "instance"
UNDOCUMENTED = ("dagster_webserver", "dagster_postgres.utils")
"""Modules of public names that no documentation mentions."""

Import = tuple[Path, int, str, str]


def is_private(module: str) -> bool:
    """Whether a module is no part of Dagster's public interface."""
    return bool(re.match(r"dagster(_\w+)?\._", module)) or module.startswith(UNDOCUMENTED)


def private_imports(folder: Path) -> Iterator[Import]:
    """The imports of private modules below a folder: file, line, module and name."""
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and is_private(node.module):
                yield from ((file, node.lineno, node.module, name.name) for name in node.names)
            elif isinstance(node, ast.Import):
                yield from ((file, node.lineno, name.name, "") for name in node.names if is_private(name.name))


IMPORTS = list(private_imports(PRIVATE_FOLDER))


def test_no_other_module_imports_a_private_part() -> None:
    elsewhere = [
        f"{file.relative_to(PACKAGE)}:{line} imports {name} of {module}"
        for file, line, module, name in private_imports(PACKAGE)
        if not file.is_relative_to(PRIVATE_FOLDER)
    ]
    assert elsewhere == [], "import it in resources/instance, and link to what would make it unnecessary"


@pytest.mark.parametrize(
    ("file", "line", "module", "name"), IMPORTS, ids=[f"{file.stem}-{name}" for file, _, _, name in IMPORTS]
)
def test_each_private_part_is_still_there(file: Path, line: int, module: str, name: str) -> None:
    where = f"{file.relative_to(PACKAGE)}:{line}, with Dagster {dg.__version__}"
    try:
        imported = importlib.import_module(module)
    except ImportError as error:
        pytest.fail(f"the private module {module} is gone ({error}); it is used in {where}")
    assert hasattr(imported, name), f"{name} is gone from the private module {module}; it is used in {where}"


@pytest.mark.parametrize("file", sorted({file for file, *_ in IMPORTS}), ids=lambda file: file.stem)
def test_each_private_part_links_to_what_would_make_it_unnecessary(file: Path) -> None:
    """A comment before the first of consecutive imports holds for all of them."""
    lines = file.read_text().splitlines()
    for line in sorted({line for of, line, _, _ in IMPORTS if of == file}):
        above = line - 2
        while above >= 0 and re.match(r"from dagster|import dagster", lines[above]):
            above -= 1
        comment = []
        while above >= 0 and lines[above].startswith("#"):
            comment.append(lines[above])
            above -= 1
        assert "https://github.com/dagster-io/dagster/" in " ".join(comment), f"{file.name}:{line} has no link"


def parameters(module: str, name: str) -> set[str]:
    """The parameters of a private function, or the fields of a class."""
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return {*inspect.signature(found).parameters, *getattr(found, "_fields", ())}


EVENTS = "dagster._core.events"
EVALUATIONS = "dagster._core.definitions.asset_checks.asset_check_evaluation"


@pytest.mark.parametrize(
    ("module", "name", "used"),
    [
        (
            "dagster._core.events.log",
            "EventLogEntry",
            {"error_info", "level", "user_message", "run_id", "timestamp", "step_key", "job_name", "dagster_event"},
        ),
        (
            EVENTS,
            "DagsterEvent",
            {"event_type_value", "job_name", "step_key", "event_specific_data", "message"},
        ),
        (
            EVALUATIONS,
            "AssetCheckEvaluationTargetMaterializationData",
            {"storage_id", "run_id", "timestamp"},
        ),
        ("dagster", "AssetCheckEvaluation", {"partition", "target_materialization_data"}),
        ("dagster", "AssetCheckSpec", {"partitions_def"}),
        ("dagster._core.run_coordinator.queued_run_coordinator", "QueuedRunCoordinator.submit_run", {"context"}),
        (
            "dagster_webserver.app",
            "create_app_from_workspace_process_context",
            {"workspace_process_context", "live_data_poll_rate"},
        ),
        ("dagster", "DagsterInstance.optimize_for_webserver", {"statement_timeout", "pool_recycle", "max_overflow"}),
    ],
)
def test_each_private_part_takes_what_it_is_given(module: str, name: str, used: set[str]) -> None:
    missing = used - parameters(module, name)
    assert not missing, f"{module}.{name} of Dagster {dg.__version__} takes no {', '.join(sorted(missing))} any more"


def _type_of_storage() -> type:
    return type(dg.DagsterInstance.ephemeral().event_log_storage)


def _type_of_asset_layer() -> type:
    @dg.op
    def nothing() -> None:
        pass

    @dg.job
    def job() -> None:
        nothing()

    return type(job.asset_layer)


@pytest.mark.parametrize(
    ("owner", "attribute"),
    [
        (_type_of_storage, "store_event_batch"),
        (_type_of_storage, "free_concurrency_slots_for_run"),
        (_type_of_storage, "supports_global_concurrency_limits"),
        (lambda: dg.AssetExecutionContext, "assets_def"),
        (lambda: dg.AssetsDefinition, "get_output_name_for_asset_key"),
        (lambda: dg.OpExecutionContext, "get_step_execution_context"),
        (lambda: dg.JobDefinition, "asset_layer"),
        (_type_of_asset_layer, "get_op_output_name"),
        (_type_of_asset_layer, "executable_asset_keys"),
    ],
)
def test_each_undocumented_attribute_is_still_there(owner: Callable[[], type], attribute: str) -> None:
    found = owner()
    assert hasattr(found, attribute), f"{found.__name__} of Dagster {dg.__version__} has no {attribute} any more"
