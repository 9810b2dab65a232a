"""From a row of a database to the part of a record that it tells, whether a SELECT or the database's log gave it."""

from __future__ import annotations

from decimal import Decimal

from sync_orchestrator.adapters.row_reader import Rows, build_unusable_part
from sync_orchestrator.config import PartSettings
from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.core.values.plain_json import as_json


class SqlRows:
    """Reads rows of a part whose values are those of a driver."""

    def __init__(self, part: PartSettings) -> None:
        self._part = part
        self._rows = Rows(part)
        self._zone = part.tz

    def part_of(self, row: dict[str, object]) -> PartRead:
        """The part that a row tells; one that cannot be used says why in ``problem``."""
        plain = {}
        for name, value in row.items():
            try:
                plain[name] = as_json(value, self._zone)
            except Exception as error:  # a value of a driver's own: it spoils its row alone
                return build_unusable_part(
                    str(plain.get(self._part.key, row.get(self._part.key, ""))),
                    f"column '{name}' cannot be read: {type(error).__name__}: {error}",
                )
        exact = {
            name: value
            for name in (self._part.key, self._part.group)
            if name is not None and isinstance(value := row.get(name), Decimal)
        }
        return self._rows.part_of(plain, names=exact)
