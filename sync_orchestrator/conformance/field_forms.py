"""Compares what would be sent with what a record shows, and finds values that no write would ever make equal. Pure.

Two values that mean the same in different forms ("9.90" and 9.9, two spellings of one time) differ after every push.
For those the setting is named that ends the difference.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import permutations
from typing import Any, get_args

from pydantic import ValidationError

from sync_orchestrator import exact_json
from sync_orchestrator.adapters.rest.codecs import Codecs
from sync_orchestrator.config import EntitySettings
from sync_orchestrator.config.targets import CodecSettings, CutNormalization, Normalization, RoundNormalization
from sync_orchestrator.core.ports import Found, Json
from sync_orchestrator.core.values.mapping import Mapping, compute_digest
from sync_orchestrator.core.values.normalization import build_normalizers
from sync_orchestrator.errors import MappingFailed

_MIN_CUT_LENGTH = 16
"""A shorter text that another one begins with is rather another value than a cut one."""
_MAX_SHOWN = 60
_NUMERAL = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}.*)?")
_KINDS = get_args(CodecSettings.model_fields["kind"].annotation)
_NORMALIZATIONS = tuple(step for step in get_args(get_args(Normalization)[0]) if isinstance(step, str))


@dataclass(frozen=True, slots=True)
class FieldDifference:
    """A mapped field in which a record there differs from what would be sent.

    ``never_matches``: the values differ in form, so that a write does not end the difference. ``hint``: the setting
    that does.
    """

    field: str
    ours: Any
    theirs: object
    never_matches: bool
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.field}: {show_value(self.ours)} would be sent, {show_value(self.theirs)} is there"


def compared_mapping(entity: EntitySettings) -> Mapping:
    """The mapping of an entity as validation compares by it."""
    codecs = Codecs(entity.third_party.fields, tuple(entity.mapping))
    return Mapping(entity.mapping, entity.third_party.fields, as_sent=codecs.as_sent if codecs.change_values else None)


def find_differences(entity: EntitySettings, payload: Json, record: Found) -> list[FieldDifference]:
    """Returns the fields in which ``record`` is not what ``payload`` would make it."""
    differing = compared_mapping(entity).list_differences(payload, record.fields)
    codecs = entity.third_party.fields
    return [judge_field(each["field"], codecs.get(each["field"]), each["ours"], each["theirs"]) for each in differing]


def find_form_differences(payload: Json, records: Sequence[Found]) -> list[str]:
    """Compares kinds of values alone, for records that have no counterpart at the sources.

    Returns a sentence for each mapped field of which all ``records`` hold another kind of value than would be sent.
    """
    found = []
    for name, ours in payload.items():
        shown = [record.fields.get(name) for record in records]
        there = [value for value in shown if value is not None]
        kinds = {_kind_of(value) for value in there}
        if ours is not None and there and _kind_of(ours) not in kinds:
            found.append(
                f"{name}: {_kind_of(ours)} such as {show_value(ours)} would be sent, the records there have "
                f"{' or '.join(sorted(kinds))} such as {show_value(there[0])}"
            )
    return found


def show_value(value: object) -> str:
    """A value on one line, clipped."""
    text = exact_json.dump_text(value, default=str)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 20]}… ({len(text)} characters)"


def judge_field(name: str, codec: CodecSettings | None, ours: object, theirs: object) -> FieldDifference:
    """Tells two forms of one value from two values. ``codec``: how the field is configured, None for not at all."""
    codec = codec or CodecSettings()
    place = f"fields.{name}"
    if (setting := _setting_for(name, codec, ours, theirs)) is not None:
        return FieldDifference(name, ours, theirs, True, f"set {place}: {setting}")
    if _is_same_time(ours, theirs):
        return FieldDifference(
            name,
            ours,
            theirs,
            True,
            (f"it is the same time in another form: map it as it is kept there, or say in {place} how it is written"),
        )
    if None not in (ours, theirs) and _kind_of(ours) != _kind_of(theirs):
        return FieldDifference(
            name,
            ours,
            theirs,
            True,
            (f"{_kind_of(ours)} never equals {_kind_of(theirs)}: see mapping.{name}, and 'kind' and 'read' of {place}"),
        )
    if theirs is None:
        return FieldDifference(name, ours, theirs, False, f"if it should be there, see {place}.read")
    return FieldDifference(name, ours, theirs, False)


def _setting_for(name: str, codec: CodecSettings, ours: object, theirs: object) -> str | None:
    """The first setting of the field that makes the two values equal."""
    if codec == CodecSettings():
        for setting, candidate in _try_kinds(theirs):
            if _reads_back(name, candidate, ours, theirs):
                return setting
    for setting, candidate in _try_normalizations(codec, ours, theirs):
        changed = build_normalizers({name: candidate})[name]
        try:
            if compute_digest(changed(ours)) == compute_digest(changed(theirs)):
                return setting
        except (ValueError, ArithmeticError):
            continue
    return None


def _try_kinds(theirs: object) -> Iterator[tuple[str, CodecSettings]]:
    digits = _digits_of(theirs)
    kinds = list(_KINDS)
    if isinstance(theirs, str) and digits:  # 'text' fits 43.38 and "43.38" too, but not 43.3 and "43.30"
        kinds.sort(key=lambda kind: kind != "decimal_text")
    for kind in kinds:
        for number in dict.fromkeys((2, digits, 3, 0)) if kind in ("decimal_text", "minor_units") else (2,):
            try:
                candidate = CodecSettings(kind=kind, digits=number)
            except ValidationError:
                continue  # a kind that needs more settings than these
            yield f"{{kind: {kind}{f', digits: {number}' if number != 2 else ''}}}", candidate


def _reads_back(name: str, codec: CodecSettings, ours: object, theirs: object) -> bool:
    codecs = Codecs({name: codec}, (name,))
    try:
        sent = codecs.encode({name: ours})
        return compute_digest(sent[name]) == compute_digest(theirs) and compute_digest(
            codecs.decode({name: theirs})[name]
        ) == compute_digest(ours)
    except (MappingFailed, ValueError, ArithmeticError):
        return False


def _try_normalizations(codec: CodecSettings, ours: object, theirs: object) -> Iterator[tuple[str, CodecSettings]]:
    steps: list[tuple[str, object]] = [(step, step) for step in _NORMALIZATIONS]
    digits = _digits_of(theirs)
    if digits and _is_number(ours) and _is_number(theirs):
        steps.append((f"{{round: {digits}}}", RoundNormalization(round=digits)))
    if isinstance(ours, str) and isinstance(theirs, str) and len(ours) > len(theirs) >= _MIN_CUT_LENGTH:
        steps.append((f"{{cut: {len(theirs)}}}", CutNormalization(cut=len(theirs))))
    alone: list[tuple[tuple[str, ...], tuple[object, ...]]] = [((shown,), (step,)) for shown, step in steps]
    if isinstance(ours, str) and isinstance(theirs, str):
        alone += [((first, second), (first, second)) for first, second in permutations(_NORMALIZATIONS, 2)]
    before = tuple(each if isinstance(each, str) else "…" for each in codec.normalize)
    for names, added in alone:
        yield (
            f"{{normalize: [{', '.join(before + names)}]}}",
            codec.model_copy(update={"normalize": [*codec.normalize, *added]}),
        )


def _digits_of(value: object) -> int:
    """How many digits stand behind the point."""
    text = value if isinstance(value, str) else exact_json.dump_text(value, default=str) if _is_number(value) else ""
    return min(len(text.partition(".")[2]), 12) if _NUMERAL.fullmatch(text) else 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _kind_of(value: object) -> str:
    if isinstance(value, bool):
        return "a truth value"
    if _is_number(value):
        return "a number"
    return "a text" if isinstance(value, str) else "a list" if isinstance(value, list | tuple) else "an object"


def _is_same_time(ours: object, theirs: object) -> bool:
    """Whether both are one time: equal, or one of them cut to seconds, or given in seconds or milliseconds."""
    first, second = _time_of(ours), _time_of(theirs)
    if first is None or second is None or (_is_number(ours) and _is_number(theirs)):
        return False
    return abs(first - second) < timedelta(seconds=1)


def _time_of(value: Any) -> datetime | None:
    try:
        if isinstance(value, str) and _TIME.fullmatch(value):
            at = datetime.fromisoformat(value.upper())
            return at if at.tzinfo else at.replace(tzinfo=UTC)
        if _is_number(value) and value > 10**8:
            return datetime.fromtimestamp(float(value) / (1000 if value > 10**11 else 1), UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return None
