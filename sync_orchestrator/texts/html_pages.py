"""The text of an HTML page, as it is shown in an error.

Pages come from systems that may send anything, so they are scanned once from left to right: no regular expression, and
no search that is repeated after it found nothing.
"""

from __future__ import annotations

import html
import string

_STARTS = ("!doctype", "html", "head", "title", "body", "h1", "center")
_HIDDEN = ("script", "style")
_SPACE = " \t\r\n\f\v\ufeff"
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_COMMENT, _COMMENT_END = "<!--", "-->"


def is_html_page(text: str) -> bool:
    """Whether a text begins as an HTML page does, after blanks and comments."""
    position = _skip_space(text, 0)
    while text.startswith(_COMMENT, position):
        end = text.find(_COMMENT_END, position + len(_COMMENT))
        if end < 0:
            return False
        position = _skip_space(text, end + len(_COMMENT_END))
    return any(_is_tag(text, position, name) for name in _STARTS)


def text_of(page: str) -> str:
    """The text of a page, without tags, comments, scripts and style sheets; with the signs that its entities name."""
    pieces: list[str] = []
    lower = page.translate(_LOWER)  # str.lower would move what follows letters that have a longer small form
    position = 0
    while (start := page.find("<", position)) >= 0:
        pieces.append(page[position:start])
        end = _end_of(lower, start)
        if end < 0:
            position = start
            break
        position = end
    pieces.append(page[position:])
    return html.unescape(" ".join(pieces))


def _end_of(lower: str, start: int) -> int:
    """The position after what begins with a ``<``; -1 for a sign that begins nothing, as in ``a < b``."""
    if lower.startswith(_COMMENT, start):
        end = lower.find(_COMMENT_END, start + len(_COMMENT))
        return len(lower) if end < 0 else end + len(_COMMENT_END)
    for name in _HIDDEN:
        if _is_tag(lower, start, name):
            start = lower.find(f"</{name}", start)
            if start < 0:
                return len(lower)
    return lower.find(">", start) + 1 or -1


def _is_tag(text: str, position: int, name: str) -> bool:
    stop = position + 1 + len(name)
    following = text[stop : stop + 1]
    return text[position:stop].lower() == f"<{name}" and not (following.isalnum() or following == "_")


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in _SPACE:
        position += 1
    return position
