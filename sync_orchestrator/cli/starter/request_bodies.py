"""The fields that records are written with, and what wraps them in a request's body."""

from __future__ import annotations

from sync_orchestrator.cli.starter.openapi import OpenApiDocument, Schema
from sync_orchestrator.cli.starter.proposals import Calls
from sync_orchestrator.cli.starter.resources import Resource
from sync_orchestrator.cli.starter.schema_fields import constant_of


def writable_fields(document: OpenApiDocument, resource: Resource) -> list[str]:
    """The names of the fields that a resource's records are written with."""
    write = resource.create or resource.update
    _, body = ([], {}) if write is None else unwrap_schema(document, resource, document.find_request_body(write)[1])
    return [name for name, field in document.list_properties(body).items() if not field.get("readOnly")]


def unwrap_schema(
    document: OpenApiDocument, resource: Resource, schema: Schema
) -> tuple[list[tuple[str, Calls]], Schema]:
    """What is around the fields of a record in a body, from the outside, and the schema of the fields."""
    wraps: list[tuple[str, Calls]] = []
    while len(wraps) < 3:
        properties = document.list_properties(schema)
        objects = [name for name, field in properties.items() if document.list_properties(field)]
        is_document = "attributes" in objects and properties.keys() <= {
            "id",
            "type",
            "attributes",
            "relationships",
            "links",
            "meta",
        }
        if is_document:
            constants: Calls = {"id": "{{ id }}"} if "id" in properties else {}
            if "type" in properties:
                constants["type"] = constant_of(properties["type"]) or resource.path.rpartition("/")[2]
            wraps.append(("attributes", constants))
            schema = properties["attributes"]
        elif len(properties) == 1 and objects:
            wraps.append((objects[0], {}))
            schema = properties[objects[0]]
        else:
            break
    return wraps, schema
