"""The ``Link`` header of a response (RFC 8288), scanned once from left to right."""

from __future__ import annotations

MAX_SCANNED = 16_384
"""Characters of the header that are looked at."""

_SPACE = " \t"


def next_link(header: str) -> str | None:
    """The address that a ``Link`` header names as the next page, as it is written there; None where it names none."""
    position, header = 0, header[:MAX_SCANNED]
    while (start := header.find("<", position)) >= 0:
        end = header.find(">", start)
        if end < 0:
            return None
        parameters, position = _read_parameters(header, end + 1)
        if "next" in parameters.get("rel", "").lower().split() and "anchor" not in parameters:
            return header[start + 1 : end].strip()
    return None


def _read_parameters(header: str, position: int) -> tuple[dict[str, str], int]:
    """What follows an address, by lower-case name, the first of each name; and where it ends."""
    found: dict[str, str] = {}
    while True:
        position = _skip_signs(header, position, _SPACE)
        if header[position : position + 1] != ";":
            return found, position
        start = _skip_signs(header, position + 1, _SPACE)
        position = _find_sign(header, start, ' \t=;,<"')
        name = header[start:position].lower()
        position = _skip_signs(header, position, _SPACE)
        value = ""
        if header[position : position + 1] == "=":
            value, position = _read_value(header, _skip_signs(header, position + 1, _SPACE))
        if name:
            found.setdefault(name, value)


def _read_value(header: str, position: int) -> tuple[str, int]:
    """A token or a quoted text, and where it ends."""
    if header[position : position + 1] != '"':
        end = _find_sign(header, position, ' \t;,"')
        return header[position:end], end
    pieces: list[str] = []
    position += 1
    while position < len(header) and header[position] != '"':
        if header[position] == "\\":
            position += 1
        pieces.append(header[position : position + 1])
        position += 1
    return "".join(pieces), min(position + 1, len(header))


def _skip_signs(header: str, position: int, signs: str) -> int:
    while position < len(header) and header[position] in signs:
        position += 1
    return position


def _find_sign(header: str, position: int, signs: str) -> int:
    while position < len(header) and header[position] not in signs:
        position += 1
    return position
