"""Unicode normalization in a time that grows with the length of a text. Pure.

Python sorts a run of combining characters in a time that is the square of the run's length.
"""

from __future__ import annotations

import unicodedata
from itertools import groupby
from typing import Literal

_SHORT_TEXT = 1000

_DECOMPOSED: dict[str, Literal["NFD", "NFKD"]] = {"NFC": "NFD", "NFD": "NFD", "NFKC": "NFKD", "NFKD": "NFKD"}


def normalize_text(form: Literal["NFC", "NFD", "NFKC", "NFKD"], text: str) -> str:
    """A text in a form of Unicode normalization."""
    if text.isascii():
        return text
    return unicodedata.normalize(form, text if len(text) <= _SHORT_TEXT else _in_order(_DECOMPOSED[form], text))


def _in_order(form: Literal["NFD", "NFKD"], text: str) -> str:
    """Decomposed, with the combining characters of each run in order."""
    decomposed = "".join(sign if sign.isascii() else unicodedata.normalize(form, sign) for sign in text)
    return "".join(
        "".join(sorted(run, key=unicodedata.combining) if combining else run)
        for combining, run in groupby(decomposed, key=lambda sign: unicodedata.combining(sign) != 0)
    )
