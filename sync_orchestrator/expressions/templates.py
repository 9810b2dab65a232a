"""Templates in ``sync.yaml``: Jinja2, sandboxed, with an unknown name as an error and never as an empty text.

In a path every filled-in value is percent-encoded by itself; ``| tilde``, ``| odata`` and ``| raw`` say otherwise. In a
body every text is a template, and one that is a single ``{{ expression }}`` gives the value itself, not its text.
An object or a list stands inside a text by ``| tojson`` only. A field of an object goes before a method of its name.
``payload | plus(_rev=revision)`` is an object with one more field, or without it where that is null; ``| uuid`` makes
a UUID of a text, the same each time. The functions of ``expressions/functions.py`` are filters, too.
``'NAME' | environment`` is a value of the environment, put in as it is: loading writes that for ``${NAME}``, so that a
secret is neither read as a template nor shown with one.
"""

from __future__ import annotations

import base64
import os
import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from functools import cache
from typing import Any
from urllib.parse import quote

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, Undefined, meta, nodes, pass_context
from jinja2.filters import do_urlencode
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sync_orchestrator import exact_json
from sync_orchestrator.errors import SyncError
from sync_orchestrator.expressions.functions import FUNCTIONS, REPLACE_NULL, UNKNOWN, ValueFunction
from sync_orchestrator.expressions.times import ValueFailed

_ALONE = re.compile(r"\s*\{\{-?(.*?)-?\}\}\s*", re.DOTALL)
_NAME = re.compile(r"\{\{ *([A-Za-z_][A-Za-z0-9_]*) *\}\}")
_WORDS_OF_JINJA = frozenset(
    {
        "true",
        "false",
        "none",
        "True",
        "False",
        "None",
        "not",
        "and",
        "or",
        "in",
        "is",
        "if",
        "else",
        "loop",
        "self",
        "super",
        "caller",
        "varargs",
        "kwargs",
    }
)
_TILDE_SAFE = re.compile(r"[A-Za-z0-9_-]")


class TemplateFailed(SyncError):
    """A template that cannot be filled in with what is known."""


class Encoded(str):
    """A text that stands in a path as it is."""

    __slots__ = ()


class _Environment(ImmutableSandboxedEnvironment):
    def getattr(self, obj: object, attribute: str) -> object:
        """A field named like a method (``items``, ``values``, ``count``) is the field."""
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)


def names_in(template: object) -> set[str]:
    """The names that a template asks for; of a structure, those of all texts in it.

    Raises ValueError for what is no template.
    """
    if isinstance(template, str):
        return set(_names_in_text(template))
    if isinstance(template, Mapping):
        return set().union(*(names_in(part) for pair in template.items() for part in pair))
    if isinstance(template, list | tuple):
        return set().union(*(names_in(part) for part in template))
    return set()


@cache
def _names_in_text(text: str) -> frozenset[str]:
    try:
        parsed = _text.parse(text)
        names = frozenset(meta.find_undeclared_variables(parsed))
        _check_filters(parsed)
    except TemplateSyntaxError as error:
        raise ValueError(f"not a template: {error.message} in '{text}'") from None
    except ValueError as error:
        raise ValueError(f"not a template: {error} in '{text}'") from None
    return names


def _check_filters(parsed: nodes.Template) -> None:
    """Checks the arguments of value functions, as far as they are literals. Raises ValueError."""
    for call in parsed.find_all(nodes.Filter):
        if call.name in FUNCTIONS and call.dyn_args is None and call.dyn_kwargs is None:
            FUNCTIONS[call.name].check_arguments(
                [UNKNOWN, *map(_literal_value, call.args)],
                {str(pair.key): _literal_value(pair.value) for pair in call.kwargs},
            )


def _literal_value(node: nodes.Node) -> Any:
    return node.value if isinstance(node, nodes.Const) else UNKNOWN


def replaces_null(template: object) -> bool:
    """Whether a filter in a template makes something of null."""
    if isinstance(template, str):
        return any(call.name in REPLACE_NULL for call in _text.parse(template).find_all(nodes.Filter))
    if isinstance(template, Mapping):
        return any(map(replaces_null, template.values()))
    return isinstance(template, list | tuple) and any(map(replaces_null, template))


def variables_in(text: str) -> list[str]:
    """The names of the environment's values that are put in, in the text of templates."""
    return re.findall(r"'(\w+)' \| environment", text)


def render_path(template: str, values: Mapping[str, object]) -> str:
    """A path, each value percent-encoded.

    Raises TemplateFailed for an unknown value, for an empty one that is not raw, and where ``.`` or ``..`` would make
    it another path.
    """
    whole = _render_with(_path, template, values)
    if not {".", ".."}.isdisjoint(whole.partition("?")[0].split("/")):
        raise TemplateFailed(f"'.' and '..' cannot stand in the path {template}")
    return whole


def render_text(template: str, values: Mapping[str, object]) -> str:
    """A text, for a query or a header; null is nothing, true and false as in JSON. Raises TemplateFailed."""
    return _render_with(_text, template, values)


def render_value(template: object, values: Mapping[str, Any]) -> Any:
    """A structure with every text in it filled in, keys too. Raises TemplateFailed."""
    if isinstance(template, str):
        expression = _compile_lone_expression(template)
        return (
            render_text(template, values) if expression is None else _evaluate_expression(expression, template, values)
        )
    if isinstance(template, Mapping):
        return {render_text(str(name), values): render_value(part, values) for name, part in template.items()}
    if isinstance(template, list | tuple):
        return [render_value(part, values) for part in template]
    return template


def place_of(template: object, name: str) -> tuple[str | int, ...] | None:
    """Where in a structure ``{{ name }}`` stands by itself, as steps from the outside; None where it does not.

    Filters may follow the name, such as in ``{{ name | trim }}``.
    """
    if isinstance(template, str):
        return () if _filtered_name(template) == name else None
    steps: Iterable[tuple[str | int, object]] = ()
    if isinstance(template, Mapping):
        steps = ((str(step), part) for step, part in template.items())
    elif isinstance(template, list | tuple):
        steps = enumerate(template)
    for step, part in steps:
        if (place := place_of(part, name)) is not None:
            return (step, *place)
    return None


def is_name(template: object, name: str) -> bool:
    """Whether a template is ``{{ name }}``, and no filter follows."""
    alone = _ALONE.fullmatch(template) if isinstance(template, str) else None
    return alone is not None and alone[1].strip() == name


def takes_fields_of(template: object, name: str) -> bool:
    """Whether a text fills in a field of an object, such as ``{{ payload.price }}``, or ``value`` itself."""
    if not isinstance(template, str):
        return False
    parsed = _text.parse(template)
    if name == "value":
        return any(node.name == name for node in parsed.find_all(nodes.Name))
    owners: list[nodes.Node] = [node.node for node in parsed.find_all(nodes.Getattr)]
    owners += [node.node for node in parsed.find_all(nodes.Getitem)]
    return any(isinstance(owner, nodes.Name) and owner.name == name for owner in owners)


def constants_added(template: str, name: str) -> list[str]:
    """The constants that ``plus`` adds to an object, such as ``type`` of ``{{ payload | plus(type='x') }}``."""
    return [
        str(pair.key)
        for call in _text.parse(template).find_all(nodes.Filter)
        if call.name == "plus"
        for pair in call.kwargs
        if isinstance(pair.value, nodes.Const) and any(node.name == name for node in call.find_all(nodes.Name))
    ]


def text_at(template: Any, place: Iterable[str | int]) -> Any:
    """The template at a place of a structure."""
    for step in place:
        is_object = isinstance(template, Mapping)
        template = next(part for name, part in template.items() if str(name) == step) if is_object else template[step]
    return template


def _filtered_name(template: str) -> str | None:
    """The name that a template fills in by itself, with filters or not; None where it is anything else."""
    if _ALONE.fullmatch(template) is None:
        return None
    body = _text.parse(template.strip()).body
    output = body[0] if len(body) == 1 else None
    node: object = output.nodes[0] if isinstance(output, nodes.Output) and len(output.nodes) == 1 else None
    while isinstance(node, nodes.Filter):
        node = node.node
    return str(node.name) if isinstance(node, nodes.Name) else None


def _path_value(found: object) -> str:
    plain = _to_plain_text(found)
    if isinstance(plain, Encoded):
        return plain
    if not plain:
        raise TemplateFailed("a value in a path is empty")
    return quote(plain, safe="", errors="replace")


def _to_plain_text(found: object) -> str:
    if isinstance(found, str):
        return found
    if found is None:
        return ""
    if isinstance(found, bool):
        return "true" if found else "false"
    if isinstance(found, Decimal):
        return exact_json.format_decimal(found)
    if isinstance(found, int | float | Undefined):
        return str(found)
    raise TemplateFailed(f"{_describe_kind(found)} stands in a text by '| tojson' only")


def _to_json_value(found: object) -> object:
    """What an expression gives, as JSON knows it."""
    if found is None or isinstance(found, str | bool | int | float | Decimal):
        return found
    if isinstance(found, Mapping):
        return {_to_plain_text(name): _to_json_value(part) for name, part in found.items()}
    if isinstance(found, Iterable):  # what filters give lazily, too; what is not known says so here
        return [_to_json_value(part) for part in found]
    raise TemplateFailed(f"{_describe_kind(found)} is no value")


def _describe_kind(found: object) -> str:
    return "an object" if isinstance(found, Mapping) else "a list" if isinstance(found, Iterable) else "a function"


def _encode_json(found: object) -> str:
    return exact_json.dump_text(_to_json_value(found))


def _encode_tilde(found: object) -> str:
    """Datasette's encoding of keys in paths: ``~`` and two hexadecimal digits; a space is ``+``."""
    encoded = "".join(
        chr(byte) if _TILDE_SAFE.match(chr(byte)) else "+" if byte == 0x20 else f"~{byte:02X}"
        for byte in _to_plain_text(found).encode("utf-8", "replace")
    )
    return Encoded(encoded) if encoded else ""


def _quote_odata(found: object) -> str:
    """A text literal of OData: in quotes, quotes in it doubled. There is none for null."""
    if found is None:
        raise TemplateFailed("null cannot be quoted")
    return "'" + _to_plain_text(found).replace("'", "''") + "'"


def _encode_base64(found: object) -> str:
    return base64.b64encode(_to_plain_text(found).encode()).decode()


def _add_fields(found: object, **fields: object) -> dict[str, object]:
    """An object with more fields; those that are null are left out."""
    if not isinstance(found, Mapping):
        raise TemplateFailed("fields are added to an object only")
    return {**found, **{name: field for name, field in fields.items() if field is not None}}


def _derive_uuid(found: object) -> str:
    """A UUID that is the same for the same text."""
    if not (plain := _to_plain_text(found)):
        raise TemplateFailed("a UUID is made of a text that is not empty")
    return str(uuid.uuid5(uuid.NAMESPACE_URL, plain))


def _encode_url(found: Any) -> str:
    """Percent-encoded; a blank is ``%20`` in a query, too."""
    return do_urlencode(found).replace("+", "%20")  # a plus sign itself is written %2B


def _as_filter(function: ValueFunction) -> Callable[..., object]:
    def apply_function(*args: object, **named: object) -> object:
        return function.call(
            *(_to_argument(function, found) for found in args),
            **{name: _to_argument(function, found) for name, found in named.items()},
        )

    return apply_function


def _to_argument(function: ValueFunction, found: object) -> object:
    """What a filter is given, as JSON knows it. Raises TemplateError for what is not there."""
    if isinstance(found, Undefined):
        if function.name in REPLACE_NULL:
            return None
        str(found)  # which says what is missing
    if isinstance(found, str):
        return str(found)
    return _to_json_value(found)


@pass_context  # so that it is looked up each time, not once when the template is compiled
def _from_environment(context: object, name: str) -> str:
    if (found := os.environ.get(name)) is None:
        raise TemplateFailed(f"the environment has no {name}")
    return Encoded(found)


def _build_environment(finalize: Callable[[object], str]) -> _Environment:
    # Encoding is by place (path, query, body), so HTML escaping would only spoil values.
    environment = _Environment(
        undefined=StrictUndefined, autoescape=False, finalize=finalize, keep_trailing_newline=True
    )
    environment.filters |= {name: _as_filter(function) for name, function in FUNCTIONS.items()}
    environment.filters |= {
        "urlencode": _encode_url,
        "tilde": _encode_tilde,
        "odata": _quote_odata,
        "base64": _encode_base64,
        "tojson": _encode_json,
        "plus": _add_fields,
        "uuid": _derive_uuid,
        "environment": _from_environment,
        "raw": lambda found: Encoded(_to_plain_text(found)),
    }
    environment.globals.clear()
    return environment


_path = _build_environment(_path_value)
_text = _build_environment(_to_plain_text)


@cache
def _compile_template(environment: _Environment, template: str) -> Any:
    return environment.from_string(template)


@cache
def _compile_lone_expression(template: str) -> object:
    """The compiled expression of a text that is nothing else; None for any other text."""
    match = _ALONE.fullmatch(template)
    if match is None:
        return None
    body = _text.parse(template.strip()).body
    alone = len(body) == 1 and isinstance(body[0], nodes.Output) and len(body[0].nodes) == 1
    return _text.compile_expression(match[1], undefined_to_none=False) if alone else None


@cache
def _split_at_names(template: str) -> tuple[str, ...]:
    """Plain text and the names between it, in turns, of a template that holds nothing else; empty for any other."""
    pieces = tuple(_NAME.split(template))
    plain = not any(sign in text for text in pieces[::2] for sign in ("{{", "}}", "{%", "{#"))
    return pieces if plain and _WORDS_OF_JINJA.isdisjoint(pieces[1::2]) else ()


def _render_with(environment: _Environment, template: str, values: Mapping[str, object]) -> str:
    try:
        pieces = _split_at_names(template)
        if pieces and all(name in values for name in pieces[1::2]):  # as Jinja would, at a tenth of the cost
            finalize = environment.finalize
            assert finalize is not None
            return "".join(finalize(values[piece]) if at % 2 else piece for at, piece in enumerate(pieces))
        return str(_compile_template(environment, template).render(values))
    except Exception as error:  # whatever filters and operators raise on values that they do not fit
        raise _describe_failure(error, template) from None


def _evaluate_expression(expression: Any, template: str, values: Mapping[str, object]) -> Any:
    try:
        pieces = _split_at_names(template.strip())
        if len(pieces) == 3 and pieces[1] in values:
            return _to_json_value(values[pieces[1]])
        return _to_json_value(expression(**values))
    except Exception as error:
        raise _describe_failure(error, template) from None


def _describe_failure(error: Exception, template: str) -> TemplateFailed:
    is_plain = isinstance(error, TemplateFailed | TemplateError | ValueFailed)
    why = error if is_plain else f"{type(error).__name__}: {error}"
    return TemplateFailed(f"{why} (in '{template}')")
