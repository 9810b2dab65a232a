"""Checks that the templates and conditions of a call name only what something fills in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sync_orchestrator.config.calls import ListCallSettings, RequestSettings, WriteCallSettings
from sync_orchestrator.expressions.truth import fields_named_by

_STEP = re.compile(r"\bsteps\.([a-z][a-z0-9_]*)")

IN_CONDITIONS = frozenset({"key", "id", "group", "payload", "answer", "response", "steps"})
"""What ``when`` of a linked call can look at."""


def check_names(calls: Mapping[str, RequestSettings | None], known: Mapping[str, set[str]]) -> None:
    """Refuses a name that nothing would fill in. Raises ValueError."""
    for name, call in calls.items():
        if call is None:
            continue
        allowed = known[name] | (call.paging_names() if isinstance(call, ListCallSettings) else set())
        for unknown in sorted(call.collect_template_names() - allowed):
            fits = ", ".join(sorted(allowed)) or "none"
            raise ValueError(f"{name}: nothing fills in '{unknown}'; known here: {fits}")


def check_followers(name: str, call: WriteCallSettings | None, known: set[str]) -> None:
    """Refuses names, conditions and steps that nothing would fill in, for the calls that belong to a write.

    Raises ValueError.
    """
    known = known | {"answer", "response", "steps"}
    steps = {"write"}
    for number, follower in enumerate(call.then if call else ()):
        place = f"{name}.then[{number}]"
        check_names({place: follower}, {place: known})
        texts = [follower.path, *follower.params.values(), *follower.headers.values(), *_texts_in(follower.body)]
        if follower.if_missing is not None:
            made = follower.if_missing
            texts += [made.path, *made.params.values(), *made.headers.values(), *_texts_in(made.body)]
        if follower.when is not None:
            texts.append(follower.when)
            if unknown := sorted(fields_named_by(follower.when) - IN_CONDITIONS - {"null"}):
                raise ValueError(
                    f"{place}.when: nothing fills in '{unknown[0]}'; known here: {', '.join(sorted(IN_CONDITIONS))}"
                )
        for text in texts:
            if unknown := [step for step in _STEP.findall(text) if step not in steps]:
                raise ValueError(
                    f"{place}: no call before it has the name '{unknown[0]}'; known in 'steps': "
                    f"{', '.join(sorted(steps))}"
                )
        if follower.name is not None:
            if follower.name in steps:
                raise ValueError(f"{place}.name: '{follower.name}' is the name of an earlier call")
            steps.add(follower.name)


def _texts_in(body: Any) -> list[str]:
    """All texts of a structure."""
    if isinstance(body, str):
        return [body]
    if isinstance(body, Mapping):
        return [text for pair in body.items() for part in pair for text in _texts_in(part)]
    return [text for part in body for text in _texts_in(part)] if isinstance(body, list | tuple) else []
