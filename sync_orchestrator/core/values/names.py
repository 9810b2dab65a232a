"""Keys, business groups and ids as texts: one form at every border (rule 29). Pure.

The numbers 7, 7.0 and 7e0 and the text "7" are one name. A text keeps its letters and is in Unicode's composed form
(NFC).
"""

from __future__ import annotations

import unicodedata
from decimal import Decimal

from sync_orchestrator.errors import SyncError
from sync_orchestrator.exact_json import EXACT, format_decimal
from sync_orchestrator.texts.unicode_forms import normalize_text

_EXACT_WHOLE = 2**53
"""From here on a float may stand for another whole number than the one that was meant."""


class NoName(SyncError):
    """A value that cannot be a key, a business group or an id; the message says which and what to give instead."""


def canonical_name(value: object, *, of_ours: bool = True) -> str | None:
    """The one form of a key, a business group or an id; None where there is none (null or an empty text).

    ``of_ours``: false for an id that another system gave, whose text is an address and stays as it is.

    Raises NoName for what has no such form: true and false, objects and lists, floats with a fraction, and whole
    numbers that are written as floats from 2**53 on.
    """
    if isinstance(value, str):
        return (to_nfc(value) if of_ours else value) or None
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float):
        return _of_float(value)
    if isinstance(value, Decimal):
        return _of_decimal(value)
    raise NoName(f"{value!r:.60} is neither a text nor a whole number")


def name_or_none(value: object) -> str | None:
    """The same where what cannot be a name counts as none."""
    try:
        return canonical_name(value)
    except NoName:
        return None


def to_nfc(text: str) -> str:
    """A text in Unicode's composed form."""
    return normalize_text("NFC", text)


def list_spellings(name: str) -> tuple[str, ...]:
    """The forms in which a source may hold a name: composed, and decomposed where that differs."""
    if name.isascii():
        return (name,)
    return tuple(dict.fromkeys((name, normalize_text("NFD", name))))


def are_alike(one: str, other: str) -> bool:
    """Whether two names may be one to a source that compares less strictly.

    The names may differ by letter case, accents, padding, or leading zeros of a number.
    """
    return fold_name(one) == fold_name(other)


def spelt_otherwise(known: str, asked: str) -> str:
    """What to say where a source knows a record under another spelling of the key that it was asked for."""
    return (
        f"the source knows this record as '{known}', not '{asked}': notifications and other parts must use its spelling"
    )


def _of_float(value: float) -> str:
    if not value.is_integer():  # which is also said of what is not finite
        raise NoName(f"{value!r} is not a whole number: give it as a text")
    if abs(value) >= _EXACT_WHOLE:
        raise _too_large(repr(value))
    return str(int(value))


def _of_decimal(value: Decimal) -> str:
    """Exact, unless it was written as a float is."""
    if not value.is_finite():
        raise NoName(f"{value} is not a number")
    if value != value.to_integral_value():
        return format_decimal(value.normalize(EXACT))
    if abs(value) >= _EXACT_WHOLE and value.as_tuple().exponent != 0:
        raise _too_large(format_decimal(value))
    return str(int(value))


def _too_large(number: str) -> NoName:
    return NoName(f"the number {number} is larger than a float holds exactly: give it as a text or as a whole number")


def fold_name(name: str) -> str:
    """What names that ``are_alike`` have in common: without letter case, accents, padding and leading zeros."""
    letters = normalize_text("NFKD", name.strip().casefold())
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return plain.lstrip("0") or "0" if plain.isdigit() else plain
