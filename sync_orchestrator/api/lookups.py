"""What became of an event or a record: ``GET /v1/events/{id}`` and ``GET /v1/records/{entity}/{key}``.

A key that may record events of a source system may look up its events, and the records of the entities that it is a
part of: versions and outcomes, no data. The text of an error may hold data or what a third party wrote, so only
``admin`` reads it; other keys get its class.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sync_orchestrator import exact_json
from sync_orchestrator.api.auth import Access
from sync_orchestrator.api.database import ApiDatabase
from sync_orchestrator.api.problems import Refused
from sync_orchestrator.config import Config
from sync_orchestrator.core.failure_causes import error_class
from sync_orchestrator.core.ledger.lookups import find_events_by_id
from sync_orchestrator.core.operations import records
from sync_orchestrator.core.service.api_keys import Caller
from sync_orchestrator.core.values.names import to_nfc
from sync_orchestrator.errors import NotFound
from sync_orchestrator.texts.storable_text import text_problem

_RECORD = (
    "entity",
    "key",
    "group_key",
    "revision",
    "deleted",
    "out_of_sync",
    "stopped",
    "error",
    "attempts",
    "external_id",
    "applied_revision",
    "applied_group",
    "applied_at",
    "changed_at",
)
_ERROR_TEXTS = ("error", "detail")
_PART = ("part", "epoch", "version", "deleted")


class Lookups:
    """The paths that show what happened to an event or a record."""

    def __init__(self, database: ApiDatabase, config: Config, access: Access) -> None:
        self._database = database
        self._config = config
        self._access = access

    def build_routes(self) -> list[Route]:
        """The routes of lookups."""
        return [Route("/v1/events/{id}", self.show_event), Route("/v1/records/{entity}/{key:path}", self.show_record)]

    async def show_event(self, request: Request) -> Response:
        """The events of an id, each with its state: of one source system (``?source=``), or of all that the key may."""
        caller = await self._access.identify_caller(request)
        asked = request.query_params.get("source")
        sources = [name for name in _filter_allowed_sources(caller, self._config.sources) if asked in (None, name)]
        ident = _require_storable(request.path_params["id"])

        def read_events() -> list[dict[str, object]]:
            with self._database.engine.begin() as connection:
                rows = find_events_by_id(connection, sources, ident)
            return [_hide_error_texts(caller, _make_plain_row(row._mapping)) for row in rows]

        found = await self._database.run_in_thread(read_events)
        if not found:
            raise Refused(404, "No event of this id was recorded for a source system that this key covers.")
        return ExactJson({"events": found})

    async def show_record(self, request: Request) -> Response:
        """A record's present state, and each event, version decision, push and difference of it, in order."""
        caller = await self._access.identify_caller(request)
        entity = self._config.entities.get(request.path_params["entity"])
        if entity is None or not _filter_allowed_sources(caller, entity.parts):
            raise Refused(404, "There is no such entity for this key.")
        name, key = str(request.path_params["entity"]), _require_storable(request.path_params["key"])

        def read_record() -> records.Biography:
            with self._database.engine.begin() as connection:
                return records.read_biography(connection, name, key)

        try:
            found = await self._database.run_in_thread(read_record)
        except NotFound:
            raise Refused(404, "Nothing is known of this record.") from None
        return ExactJson(
            {
                "record": found["record"] and _hide_error_texts(caller, _make_plain_row(found["record"], _RECORD)),
                "parts": [_make_plain_row(part, _PART) for part in found["parts"]],
                "history": [_hide_error_texts(caller, line) for line in _in_order(found)],
            }
        )


class ExactJson(JSONResponse):
    """JSON with all digits of its numbers."""

    def render(self, content: object) -> bytes:
        """Returns the body of the response, with all digits."""
        return exact_json.dumps(content)


def _filter_allowed_sources(caller: Caller, sources: Iterable[str]) -> list[str]:
    return [name for name in sources if caller.has_scope(f"events:{name}")]


def _require_storable(text: str) -> str:
    if text_problem(text) is not None:
        raise Refused(404, "Nothing can have this name.")
    return to_nfc(text)


def _in_order(found: records.Biography) -> list[dict[str, object]]:
    """One list: events as they were received and as they ended, pushes with their outcomes, differences found."""
    lines: list[tuple[Any, dict[str, Any]]] = []
    for event in found["events"]:
        told = {"source": event["source"], "id": event["event_id"], "version": event["version"]}
        lines.append((event["received_at"], {"what": "received", **told, "action": event["action"]}))
        state = {name: event[name] for name in ("state", "revision", "attempts", "error", "reason")}
        lines.append((event["finished_at"], {"what": "finished" if event["finished_at"] else "open", **told, **state}))
    lines += [
        (
            push["at"],
            {"what": "push", **{name: push[name] for name in ("revision", "step", "outcome", "status", "detail")}},
        )
        for push in found["pushes"]
    ]
    lines += [
        (drift["found_at"], {"what": "drift", "kind": drift["kind"], "status": drift["status"]})
        for drift in found["drift"]
    ]
    done = sorted((line for line in lines if line[0] is not None), key=lambda line: line[0])
    still = [line for line in lines if line[0] is None]
    return [_make_plain_row({"at": at, **line}) for at, line in (*done, *still)]


def _hide_error_texts(caller: Caller, row: dict[str, Any]) -> dict[str, Any]:
    """A row as this caller may see it: texts of errors are for ``admin``."""
    if caller.has_scope("admin"):
        return row
    hidden = (*_ERROR_TEXTS, "reason") if row.get("state") == "discarded" else _ERROR_TEXTS
    return {name: error_class(value) if name in hidden else value for name, value in row.items()}


def _make_plain_row(row: Any, names: Iterable[str] | None = None) -> dict[str, object]:
    chosen = row if names is None else {name: row[name] for name in names}
    return {
        name: value.isoformat() if hasattr(value, "isoformat") else value
        for name, value in chosen.items()
        if name != "seq"
    }
