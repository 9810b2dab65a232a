"""The JSON Schema of ``sync.yaml``, for editors: what pydantic makes of the models, and ``${NAME}`` besides."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode
from pydantic_core import CoreSchema

from sync_orchestrator.config.document import Config

_FROM_ENVIRONMENT = {"type": "string", "pattern": r"\$\{"}
_CONSTRAINTS = (
    "type",
    "pattern",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "minLength",
    "maxLength",
)


def json_schema() -> dict[str, object]:
    """The schema, ready to be published."""
    return Config.model_json_schema(schema_generator=_ForEditors)


class _ForEditors(GenerateJsonSchema):
    def generate(self, schema: CoreSchema, mode: JsonSchemaMode = "validation") -> dict[str, object]:
        made = super().generate(schema, mode)
        named: dict[str, Any] = _with_environment(made)
        named["$defs"]["FromEnvironment"] = {
            **_FROM_ENVIRONMENT,
            "description": "A text with ${NAME} or ${NAME:-default} in it.",
        }
        return {"$schema": self.schema_dialect, **named}

    def field_title_should_be_set(self, schema: object) -> bool:
        return False  # they would only repeat the names


def _with_environment(node: object) -> Any:
    """The same, with the environment allowed wherever a plain text would not do."""
    if isinstance(node, list):
        return [_with_environment(item) for item in node]
    if not isinstance(node, dict):
        return node
    made = {
        name: part
        if name in ("default", "required", "enum", "discriminator", "propertyNames")
        else _with_environment(part)
        for name, part in node.items()
    }
    if "patternProperties" in made:
        made.setdefault("additionalProperties", False)
    kind = node.get("type")
    is_narrow = kind in ("integer", "number", "boolean") or (kind == "string" and "pattern" in node)
    if not is_narrow or "const" in node or "enum" in node:
        return made
    own = {name: made.pop(name) for name in _CONSTRAINTS if name in made}
    return {"anyOf": [own, {"$ref": "#/$defs/FromEnvironment"}], **made}
