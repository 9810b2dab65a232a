"""One cause, one row: which behaviours failed for the same reason, and which one names it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sync_orchestrator.conformance.report import BehaviourResult

_OF_ONE_BEHAVIOUR = ("list", "lookup", "count", "delete", "groups", "changes")
"""Calls that have behaviours of their own; the others (create, update, read) are part of nearly all of them."""


@dataclass(frozen=True, slots=True)
class Tried:
    """How a behaviour ended, and why. ``cause`` is the same for the same failure of the same call.

    ``section``: where in ``sync.yaml`` the behaviour looks; ``failed_section``: where the failed call is. ``fields``:
    those that differed, where nothing else did. ``needs``: behaviours without which this one means nothing.
    ``is_closed``: the login was refused, or the system does not respond.
    """

    ending: BehaviourResult
    cause: str = ""
    section: str = ""
    failed_section: str = ""
    fields: frozenset[str] = frozenset()
    needs: tuple[str, ...] = ()
    is_closed: bool = False


def name_causes(tried: Sequence[Tried]) -> list[BehaviourResult]:
    """Returns the endings in the order in which they are read: each cause, and below it what depended on it.

    A behaviour that failed for a reason that another one names already is skipped because of that one.
    """
    failed = [each for each in tried if each.ending.outcome == "failed"]
    because: dict[str, str] = {}
    leaders: dict[str, Tried] = {}
    for each in failed:
        alike = [other for other in failed if other.cause == each.cause]
        leaders[each.cause] = next(
            (
                other
                for other in alike
                if other.failed_section in _OF_ONE_BEHAVIOUR and other.section == other.failed_section
            ),
            alike[0],
        )
    known_fields: dict[str, str] = {}
    for each in failed:
        name = each.ending.behaviour
        leader = leaders[each.cause].ending.behaviour
        needed = next(
            (
                need
                for need in each.needs
                if need != name and any(other.ending.behaviour == need and not other.fields for other in failed)
            ),
            None,
        )
        if each.fields and each.fields <= known_fields.keys():
            because[name] = next(iter({known_fields[field] for field in sorted(each.fields)}))
        elif leader != name:
            because[name] = leader
        elif needed is not None:
            because[name] = needed
        for field in each.fields:
            known_fields.setdefault(field, because.get(name, name))
    return _order_by_cause([_skip_dependent(each.ending, _find_root(because, each.ending.behaviour)) for each in tried])


def _find_root(because: dict[str, str], name: str) -> str:
    """The behaviour at the beginning of a chain of dependence; the name itself where it depends on none."""
    seen = {name}
    while name in because and because[name] not in seen:
        name = because[name]
        seen.add(name)
    return name


def _skip_dependent(ending: BehaviourResult, cause: str) -> BehaviourResult:
    if ending.outcome != "failed" or cause == ending.behaviour:
        return ending
    return replace(
        ending, outcome="skipped", because_of=cause, came=f"because of {cause}: {ending.came}", expected="", hint=""
    )


def _order_by_cause(endings: Sequence[BehaviourResult]) -> list[BehaviourResult]:
    ordered: list[BehaviourResult] = []
    for ending in endings:
        if not ending.because_of:
            ordered.append(ending)
            ordered += [other for other in endings if other.because_of == ending.behaviour]
    return ordered
