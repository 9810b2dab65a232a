"""Where the items of a JSON array begin and end, found without making values of them.

A body of a few kilobytes can unpack to millions of items, and an item can hold millions of values, each of which costs
far more memory than its bytes. So a large body is cut into items first, and each item is parsed by itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_PIECE = 65_536
_QUOTE, _COMMA, _END = ord('"'), ord(","), ord("]")
_SPACES = b" \t\n\r"
_STEPS = np.zeros(256, dtype=np.int32)
_STEPS[[ord("["), ord("{")]] = 1
_STEPS[[ord("]"), ord("}")]] = -1
_SIGNS = _STEPS != 0
_SIGNS[[_QUOTE, _COMMA]] = True


def is_array(body: bytes) -> bool:
    """Whether a JSON document begins as an array."""
    return body[:_PIECE].lstrip(_SPACES).startswith(b"[")


def find_item_spans(body: bytes) -> Iterator[list[tuple[int, int]]]:
    """The places of the items of an array, some at a time and in order, in work that is small and alike each time.

    Says nothing of whether it is JSON, which parsing each item does. Raises ValueError where the array does not end, or
    something follows it.
    """
    begin = len(body) - len(body.lstrip(_SPACES)) + 1
    depth, in_text, escaped = 1, False, False
    item = begin
    for at in range(begin, len(body), _PIECE):
        piece, escaped = _without_escapes(body[at : at + _PIECE], escaped)
        found = np.frombuffer(piece, dtype=np.uint8)
        signs = np.flatnonzero(_SIGNS[found])  # all others say nothing of where items end
        kinds = found[signs]
        inside = (np.cumsum(kinds == _QUOTE, dtype=np.int32) + in_text) & 1
        outside = inside == 0
        depths = depth + np.cumsum(np.where(outside, _STEPS[kinds], 0), dtype=np.int32)
        if len(signs):
            in_text, depth = bool(inside[-1]), int(depths[-1])
        ended = np.flatnonzero(outside & (depths == 0))
        last = int(ended[0]) if len(ended) else len(signs)
        end = int(signs[last]) if len(ended) else len(found)
        commas = signs[:last][outside[:last] & (kinds[:last] == _COMMA) & (depths[:last] == 1)]
        some = []
        for comma in commas.tolist():
            some.append((item, at + comma))
            item = at + comma + 1
        if len(ended):
            if body[at + end] != _END or body[at + end + 1 :].strip(_SPACES):
                raise ValueError("something follows the array")
            if item > begin or body[item : at + end].strip(_SPACES):
                some.append((item, at + end))
            yield some
            return
        yield some
    raise ValueError("the array does not end")


def _without_escapes(piece: bytes, escaped: bool) -> tuple[bytes, bool]:
    """The piece with blanks for what a backslash escapes, as long as before; whether its end escapes what follows."""
    if escaped:
        piece = b" " + piece[1:]
    if b"\\" not in piece:
        return piece, False
    piece = piece.replace(rb"\\", b"  ").replace(rb"\"", b"  ")
    return piece, piece.endswith(b"\\")
