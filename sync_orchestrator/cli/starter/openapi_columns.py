"""Proposes the columns of a source from the fields of its records in an OpenAPI document."""

from __future__ import annotations

from sync_orchestrator.cli.starter.columns import Column, ColumnKind, plain_name
from sync_orchestrator.cli.starter.openapi import OpenApiDocument, Schema
from sync_orchestrator.cli.starter.resources import Resource, list_place, record_place

IDS = ("id", "uuid", "guid", "gid", "documentid", "key")

_KINDS: dict[str, ColumnKind] = {"string": "text", "integer": "number", "number": "number", "boolean": "bool"}


def propose_columns(document: OpenApiDocument, resource: Resource) -> tuple[Column, ...]:
    """The fields of a resource's records as the columns of a source."""
    operation = resource.read or resource.listing
    if operation is None:
        return ()
    schema = document.find_response_schema(operation)
    place = record_place(document, schema, ()) if resource.read else list_place(document, schema, ())
    if resource.read and resource.listing is not None:
        listed = list_place(document, document.find_response_schema(resource.listing), ())
        fields = document.list_properties(listed.schema) if listed else {}
        place = record_place(document, schema, fields)
    shown = document.list_properties(place.schema) if place else {}
    parameter = plain_name(resource.id_parameter or "")
    return tuple(
        Column(
            name,
            _column_kind(field),
            is_unique=plain_name(name) in (parameter, *IDS),
            is_nullable=name not in document.list_required(place.schema if place else {}),
        )
        for name, field in shown.items()
        if "items" not in field
    )


def _column_kind(field: Schema) -> ColumnKind:
    kind = field.get("type")
    kinds = [each for each in kind if each != "null"] if isinstance(kind, list) else [kind]
    if field.get("format") == "date-time":
        return "time"
    return _KINDS.get(str(kinds[0]), "other") if kinds else "other"
