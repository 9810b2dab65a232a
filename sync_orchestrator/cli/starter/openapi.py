"""Reads an OpenAPI 3 document: its operations and its schemas, with references followed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import yaml

from sync_orchestrator.errors import ConfigError

MAX_DOCUMENT_BYTES = 32_000_000
_TIMEOUT_SECONDS = 20
_METHODS = ("get", "put", "post", "delete", "patch")
_MAX_REFERENCES = 40

Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of one path; ``parameters`` are those of the path and its own."""

    method: str
    path: str
    parameters: tuple[Schema, ...]
    content: dict[str, object]

    @property
    def title(self) -> str:
        """How messages name it."""
        return f"{self.method} {self.path}"

    def names_of(self, place: str) -> list[str]:
        """The names of its parameters in ``query``, ``path`` or ``header``."""
        return [str(each["name"]) for each in self.parameters if each.get("in") == place and "name" in each]

    def find_parameter(self, name: str) -> Schema:
        """The schema of a parameter."""
        found = next((each for each in self.parameters if each.get("name") == name), {})
        schema = found.get("schema", {})
        return schema if isinstance(schema, dict) else {}


@dataclass(frozen=True, slots=True)
class OpenApiDocument:
    """An OpenAPI document and the place that it was read from."""

    source: str
    content: dict[str, object]
    paths: dict[str, dict[str, Operation]] = field(default_factory=dict)
    """By path without a slash at its end, the operations by method."""

    @property
    def server(self) -> str | None:
        """The address of the API: its first server, relative to the document's own; None where it names none."""
        servers = self.content.get("servers")
        first = servers[0] if isinstance(servers, list) and servers else {}
        url = str(first.get("url", "")) if isinstance(first, dict) else ""
        for name, variable in (first.get("variables") or {}).items() if isinstance(first, dict) else ():
            url = url.replace("{" + name + "}", str(variable.get("default", "")))
        base = self.source if self.source.startswith(("http://", "https://")) else ""
        whole = urljoin(base, url) if url else "{0.scheme}://{0.netloc}".format(urlsplit(base)) if base else ""
        return whole.rstrip("/") if re.match(r"https?://", whole) else None

    def resolve_schema(self, value: object) -> Schema:
        """A schema or another object with the reference that it consists of followed, and ``allOf`` joined.

        What the document does not have, and references to other documents, become an empty object.
        """
        return self._resolve_references(value, 0)

    def _resolve_references(self, value: object, depth: int) -> Schema:
        while isinstance(value, dict) and depth < _MAX_REFERENCES:
            reference = value.get("$ref")
            if not isinstance(reference, str):
                return self._join_alternatives(value, depth)
            value = self._find_reference(reference)
            depth += 1
        return {}

    def _find_reference(self, reference: str) -> Any:
        if not reference.startswith("#/"):
            return {}
        found: object = self.content
        for step in reference[2:].split("/"):
            step = step.replace("~1", "/").replace("~0", "~")
            found = found.get(step) if isinstance(found, dict) else None
        return found

    def _join_alternatives(self, schema: Schema, depth: int) -> Schema:
        choices = [
            each
            for each in (*schema.get("anyOf", ()), *schema.get("oneOf", ()))
            if isinstance(each, dict) and each.get("type") != "null"
        ]
        parts = [each for each in schema.get("allOf", ()) if isinstance(each, dict)]
        if not parts and not (choices and "properties" not in schema):
            return schema
        joined: Schema = {name: value for name, value in schema.items() if name not in ("allOf", "anyOf", "oneOf")}
        for part in (*parts, *choices[:1]):
            part = self._resolve_references(part, depth + 1)
            properties = {**joined.get("properties", {}), **part.get("properties", {})}
            required = [*joined.get("required", ()), *part.get("required", ())]
            joined = {**part, **joined, "properties": properties, "required": required}
            if not properties:
                del joined["properties"]
        return joined

    def list_properties(self, schema: object) -> dict[str, Schema]:
        """The fields of an object."""
        found = self.resolve_schema(schema).get("properties")
        return {str(name): self.resolve_schema(each) for name, each in found.items()} if isinstance(found, dict) else {}

    def list_required(self, schema: object) -> set[str]:
        """The names of the fields that an object must have."""
        found = self.resolve_schema(schema).get("required")
        return {str(name) for name in found} if isinstance(found, list) else set()

    def find_request_body(self, operation: Operation) -> tuple[str | None, Schema]:
        """The media type and the schema of the body that an operation takes; JSON where there is a choice."""
        content = self.resolve_schema(operation.content.get("requestBody")).get("content")
        return self._find_body(content)

    def find_response_schema(self, operation: Operation) -> Schema:
        """The schema of the body that an operation responds with where it succeeds."""
        responses = operation.content.get("responses")
        for status, response in (
            sorted((str(status), each) for status, each in responses.items()) if isinstance(responses, dict) else ()
        ):
            if status.startswith("2"):
                _, schema = self._find_body(self.resolve_schema(response).get("content"))
                if schema:
                    return schema
        return {}

    def _find_body(self, content: object) -> tuple[str | None, Schema]:
        if not isinstance(content, dict) or not content:
            return None, {}
        kind = next((kind for kind in content if "json" in kind), next(iter(content)))
        body = content[kind]
        return kind, self.resolve_schema(body.get("schema")) if isinstance(body, dict) else {}

    def security_schemes(self) -> Iterator[Schema]:
        """How the API knows who calls it."""
        schemes = self.resolve_schema(self.content.get("components")).get("securitySchemes")
        for scheme in schemes.values() if isinstance(schemes, dict) else ():
            yield self.resolve_schema(scheme)


def read_document(source: str) -> OpenApiDocument:
    """Reads an OpenAPI 3.0 or 3.1 document in JSON or YAML.

    Args:
        source: A file, or an ``http`` or ``https`` URL.

    Raises:
        ConfigError: It cannot be read, or it is no such document.
    """
    text = _fetch_url(source) if source.startswith(("http://", "https://")) else _read_file(Path(source))
    try:
        content = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # JSON is YAML
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: neither JSON nor YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{source}: no OpenAPI document: expected an object with 'openapi' and 'paths'")
    version = str(content.get("openapi", ""))
    if not version.startswith("3."):
        found = f"Swagger {content['swagger']}" if "swagger" in content else f"openapi: {version or 'nothing'}"
        raise ConfigError(
            f"{source}: expected OpenAPI 3.0 or 3.1, found {found}; a converter such as "
            "https://converter.swagger.io makes one of the other"
        )
    return _with_operations(OpenApiDocument(source, content))


def _with_operations(document: OpenApiDocument) -> OpenApiDocument:
    paths = document.content.get("paths")
    for path, item in paths.items() if isinstance(paths, dict) else ():
        item = document.resolve_schema(item)
        shared = [document.resolve_schema(each) for each in item.get("parameters") or ()]
        for method in _METHODS:
            if isinstance(content := item.get(method), dict):
                own = [document.resolve_schema(each) for each in content.get("parameters") or ()]
                parameters = tuple(
                    {**each, "schema": document.resolve_schema(each.get("schema"))}
                    for each in {(each.get("in"), each.get("name")): each for each in (*shared, *own)}.values()
                )
                document.paths.setdefault(str(path).rstrip("/") or "/", {})[method] = Operation(
                    method.upper(), str(path), parameters, content
                )
    if not document.paths:
        raise ConfigError(f"{document.source}: it has no operations under 'paths'")
    return document


def _read_file(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_DOCUMENT_BYTES:
            raise ConfigError(f"{path}: more than {MAX_DOCUMENT_BYTES:,} bytes")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8") from None


def _fetch_url(url: str) -> str:
    found = bytearray()
    try:
        with httpx.stream("GET", url, timeout=_TIMEOUT_SECONDS, follow_redirects=True) as response:
            if response.status_code != 200:
                raise ConfigError(f"{url}: status {response.status_code}; save the document in a file and name that")
            for chunk in response.iter_bytes():
                found += chunk
                if len(found) > MAX_DOCUMENT_BYTES:
                    raise ConfigError(f"{url}: more than {MAX_DOCUMENT_BYTES:,} bytes")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConfigError(f"{url}: {str(error) or type(error).__name__}") from None
    return found.decode("utf-8", "replace")
