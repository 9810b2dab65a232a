"""Finds the query parameters by which a listing is filtered, and what they are filled with."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from sync_orchestrator.cli.starter.columns import plain_name
from sync_orchestrator.cli.starter.lines import mark_guessed
from sync_orchestrator.cli.starter.openapi import Operation


def filter_named(listing: Operation, names: Collection[str]) -> str | None:
    """Returns the query parameter that is named like one of these, or else an OData filter; None without either."""
    for parameter in listing.names_of("query"):
        if is_named_like(parameter, names):
            return parameter
    return next((each for each in listing.names_of("query") if each.lower() == "$filter"), None)


def is_named_like(parameter: str, names: Collection[str]) -> bool:
    """Whether a parameter such as ``shop`` or ``filters[shop][$eq]`` is named like one of these."""
    return plain_name(parameter) in names or any(
        plain_name(word) in names for word in re.split(r"[^\w-]+", parameter) if word
    )


def filter_value(parameter: str, field: str, name: str) -> Any:
    """Returns the template that a filter's parameter is filled with."""
    if parameter.lower() == "$filter":
        return mark_guessed(f"{field} eq {{{{ {name} | odata }}}}", "an OData filter")
    return f"{{{{ {name} }}}}"
