"""What a third party is known to do to a value, done to both sides before they are compared (rule 35). Pure.

Not here: how a value is written and read (``adapters/codecs.py``).
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from functools import reduce
from typing import TYPE_CHECKING, Any

from sync_orchestrator.core.exact_json import EXACT, decimal_of, is_absurd, simplest, text

if TYPE_CHECKING:
    from sync_orchestrator.config.targets import Codec, Normalization

Normalizer = Callable[[Any], Any]


def normalizers(fields: Mapping[str, Codec]) -> dict[str, Normalizer]:
    """By mapped field, what makes one of all values that the third party makes one of."""
    return {name: _all_of(codec.normalize) for name, codec in fields.items() if codec.normalize}


def _all_of(steps: Sequence[Normalization]) -> Normalizer:
    each = [_step(step) for step in steps]
    return lambda value: reduce(lambda found, step: step(found), each, value)


def _step(step: Normalization) -> Normalizer:
    from sync_orchestrator.config.targets import CutTo, RoundTo

    if isinstance(step, RoundTo):
        return _within(lambda value: _rounded(value, step.round))
    if isinstance(step, CutTo):
        return _within(lambda value: value[: step.cut] if isinstance(value, str) else value)
    return _STEPS[step]


def _within(change: Normalizer) -> Normalizer:
    """The same for each value in a list or an object; names stay."""

    def changed(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: changed(item) for name, item in value.items()}
        return [changed(item) for item in value] if isinstance(value, list | tuple) else change(value)

    return changed


def _of_text(change: Callable[[str], str]) -> Normalizer:
    return _within(lambda value: change(value) if isinstance(value, str) else value)


def _rounded(value: Any, digits: int) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return value
    exact = decimal_of(value)
    if is_absurd(exact):
        return value
    return simplest(exact.quantize(Decimal(1).scaleb(-digits), rounding=ROUND_HALF_UP, context=EXACT))


def _sorted_list(value: Any) -> Any:
    return sorted(value, key=lambda item: text(item, sort_keys=True)) if isinstance(value, list) else value


_STEPS: dict[str, Normalizer] = {
    "trim": _of_text(str.strip),
    "collapse_spaces": _of_text(lambda value: " ".join(value.split())),
    "lower": _of_text(str.lower),
    "upper": _of_text(str.upper),
    "nfc": _of_text(lambda value: unicodedata.normalize("NFC", value)),
    "unescape_html": _of_text(html.unescape),
    "line_breaks": _of_text(lambda value: value.replace("\r\n", "\n").replace("\r", "\n")),
    "empty_as_null": lambda value: None if value in ("", [], {}) else value,
    "sort_list": _sorted_list,
}
