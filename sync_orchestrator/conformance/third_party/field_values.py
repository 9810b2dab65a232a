"""Behaviours of a third party with values and keys of all forms: they come back as they were written."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

from sync_orchestrator.conformance.field_forms import judge_field
from sync_orchestrator.conformance.fixture import Bench, catch_refusal
from sync_orchestrator.conformance.report import Behaviours, Differs, Skipped
from sync_orchestrator.conformance.third_party.shared_checks import no_duplicate, update_and_check

FIELD_VALUES: Behaviours[Bench] = Behaviours()
behaviour = FIELD_VALUES.add


def _check_values(kind: str, *values: Any) -> Callable[[Bench], Awaitable[None]]:
    async def check_values(bench: Bench) -> None:
        field = getattr(bench.samples, kind)
        if field is None:
            raise Skipped(
                f"the sample has no field for that ({kind})" + (": name one with --text" if kind == "text" else "")
            )
        for value in values:
            made, refused = await catch_refusal(bench.create_record(bench.make_item(**{field: value})))
            if made is None:
                raise Skipped(f"it refuses {_clip_value(value)} in '{field}': {refused}")
            found = await bench.poll_until(
                lambda made=made: bench.third_party.read(made),  # type: ignore[misc]
                lambda found: found is not None,
            )
            came = None if found is None else found.fields.get(field)
            if found is None or not bench.is_kept(field, value, came):
                hint = judge_field(field, bench.entity.third_party.fields.get(field), value, came).hint
                raise Differs(
                    f"{field}: {_clip_value(came)} came",
                    f"{_clip_value(value)}, as it was written",
                    f"entities.{bench.name}.third_party: {hint}"
                    if hint and bench.system.adapter is None
                    else f"see {field} in 'mapping' and 'fields': write it as it is kept there",
                    fields=[field],
                    cause=f"{field} {value!r}",
                )

    return check_values


def _check_key(end: str) -> Callable[[Bench], Awaitable[None]]:
    async def check_key(bench: Bench) -> None:
        pattern = bench.entity.third_party.key_pattern
        if not bench.odd_keys:
            raise Skipped("some servers break on such keys: allow them with --odd-keys")
        fresh = bench.make_item(end)
        if pattern is not None and re.fullmatch(pattern, fresh.key) is None:
            raise Skipped(f"key_pattern '{pattern}' lets no such key through")
        item, refused = await catch_refusal(bench.create_record(fresh))
        if refused is not None and refused.not_ours is not None:
            raise Differs(f"its key is {refused.not_ours!r}", "the key that was written")
        if item is None:
            raise Skipped(
                f"it refuses such a key: {refused}; "
                + ("say which it takes with key_pattern" if pattern is None else f"key_pattern '{pattern}' takes it")
            )
        await bench.check_shown(item)
        await no_duplicate(bench, item)
        if bench.samples.changeable:
            await update_and_check(bench, bench.change_item(item, 1))
        await bench.third_party.delete(item)
        left = await bench.poll_until(lambda: bench.third_party.read(item), lambda left: left is None)
        if left is not None:
            raise Differs(
                f"after its delete it is still there: {left.fields}",
                "no record",
                bench.point_to_fix("delete", "delete"),
            )

    return check_key


def _add_family(
    prefix: str, section: str, method: str, made: dict[str, tuple[str, Callable[[Bench], Awaitable[None]]]]
) -> None:
    for name, (says, run) in made.items():
        run.__name__, run.__doc__ = f"{prefix}_{name}", says
        needs = ("update-then-read", "delete-then-gone") if prefix == "key_with" else ()
        behaviour(section, method, needs)(run)


_add_family(
    "values",
    "fields",
    "create and read",
    {
        "unicode": (
            "Texts of all scripts come back as they were written.",
            _check_values("text", "Ünïcödé 漢字 عربى 🙂", "a\u0301 is not á"),
        ),
        "markup": (
            "Quotes, markup and line breaks come back as they were written.",
            _check_values("text", "\"double\" 'single' <b>&amp;</b> \\ back; {{ name }}", "one\ntwo\tthree"),
        ),
        "outer_spaces": ("Spaces around a text are kept.", _check_values("text", "  spaces around  ")),
        "empty_text": ("An empty text stays one, and becomes no null.", _check_values("text", "")),
        "null": ("Null stays null.", _check_values("text", None)),
        "long_text": ("A long text is not cut off.", _check_values("text", "long text " * 400 + "end")),
        "decimals": ("Decimals come back to the last digit.", _check_values("decimal", 19.99, 0.1, 1234567.89)),
        "large_integers": (
            "Large whole numbers come back to the last digit.",
            _check_values("number", 2**31, 2**53 - 1),
        ),
        "truth": ("True and false come back as such.", _check_values("truth", True, False)),
    },
)
_add_family(
    "key_with",
    "update",
    "create and read",
    {
        name: (f"A record whose key has {what} in it is kept like any other.", _check_key(end))
        for name, what, end in (
            ("slash", "a slash", "a/b"),
            ("space", "a space", "a b"),
            ("quotes", "quotes", "a'b\"c"),
            ("percent", "a percent sign", "a%2Fb%"),
            ("plus", "a plus sign", "a+b"),
            ("question_mark", "a question mark, a hash or an ampersand", "a?b#c&d=e"),
            ("unicode", "letters of all scripts", "ä漢🙂"),
        )
    },
)


def _clip_value(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}… ({len(text)} characters)"
