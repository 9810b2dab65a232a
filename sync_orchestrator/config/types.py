"""The kinds of values that ``sync.yaml`` is made of: durations, expressions, templates, names."""

from __future__ import annotations

import base64
import re
from datetime import timedelta
from typing import Annotated, Any

import jmespath
from jmespath.exceptions import JMESPathError
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from sync_orchestrator.config.environment import as_template
from sync_orchestrator.expressions.selectors import check_calls
from sync_orchestrator.expressions.templates import names_in
from sync_orchestrator.texts.host_names import check_allowed_host

_MIN_BYTES = 16
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _parse_seconds(value: object) -> Any:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*", value)
        if match is None:
            raise ValueError("write a number of seconds, or a number with ms, s, m, h or d, such as 10s")
        return float(match[1]) * _UNITS[match[2]]
    return value


def _check_expression(value: str) -> str:
    try:
        parsed = jmespath.compile(value).parsed
    except JMESPathError as error:
        raise ValueError(f"not a JMESPath expression: {str(error).splitlines()[0]}") from None
    try:
        check_calls(value)
    except ValueError as error:
        raise ValueError(f"not a JMESPath expression: {error}") from None
    if _negates_too_early(parsed):
        raise ValueError("JMESPath reads '!a.b' as '(!a).b', which is never true: write '!(a.b)'")
    return value


def _negates_too_early(node: Any) -> bool:
    children = [child for child in node["children"] if isinstance(child, dict)]
    early = node["type"] in ("subexpression", "index_expression") and children[0]["type"] == "not_expression"
    return early or any(map(_negates_too_early, children))


def _check_template(value: object) -> object:
    names_in(value)
    return value


def _check_pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return value


def webhook_key(secret: str) -> bytes:
    """The bytes that a secret of Standard Webhooks stands for. Raises ValueError."""
    digits = secret.removeprefix("whsec_").rstrip("=")
    return base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)


def _webhook_secret(value: str) -> str:
    """Without spaces and line ends. Any other sign that is not of the alphabet would be passed over when it is used."""
    value = "".join(value.split())
    try:
        secret = webhook_key(value)
    except ValueError:
        secret = b""
    if len(secret) < _MIN_BYTES:
        raise ValueError(
            f"write at least {_MIN_BYTES} bytes in base64 (letters, digits, + and /), 'whsec_' before "
            "it or not, such as: echo whsec_$(openssl rand -base64 24)"
        )
    return value


Seconds = Annotated[
    float,
    BeforeValidator(_parse_seconds),
    Field(ge=0),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0},
                {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*(ms|s|m|h|d)\s*$|\$\{"},
            ]
        }
    ),
]
"""A duration: a number of seconds, or text such as ``10s``, ``5m``, ``1h``."""

Expression = Annotated[str, AfterValidator(_check_expression)]
"""A JMESPath expression."""

Template = Annotated[str, BeforeValidator(as_template), AfterValidator(_check_template)]
"""A Jinja2 template: text with ``{{ name }}`` in it."""

Pattern = Annotated[str, AfterValidator(_check_pattern)]
"""A regular expression."""

Body = Annotated[object, BeforeValidator(as_template), AfterValidator(_check_template)]
"""Any structure; each text in it is a template, and one that is a single ``{{ name }}`` gives the value itself."""

WebhookSecret = Annotated[str, AfterValidator(_webhook_secret)]
"""A secret of Standard Webhooks 1.0: base64, padded or not, ``whsec_`` before it or not."""

AllowedHost = Annotated[str, AfterValidator(check_allowed_host)]
"""A host name or an address, with or without a port."""

ClassName = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
"""A Python class, ``module:Class``."""

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)]


class Model(BaseModel):
    """Unknown fields are refused; a loaded configuration does not change; what is wrong with it shows no value."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True, validate_default=True
    )
