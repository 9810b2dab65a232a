"""The count check: whether the third party has as many records of a business group as it should have."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqlalchemy import Connection

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.validation import queries
from sync_orchestrator.core.validation.diff import GroupDiff
from sync_orchestrator.core.validation.scope import ValidationScope


@dataclass(frozen=True, slots=True)
class RecordCounts:
    """How many records of a group there are.

    ``expected`` is without the ``ambiguous``, whose pushes are open or of unknown outcome. ``counted``: records that
    the third party has; ``compared``: those that were compared one by one, None where the count sufficed.
    ``unmanaged``: records that are there and were never put there by us. ``of_other_groups``: listed records that
    belong to other groups here. ``reported``: what the third party's own count says. ``absent``: records that are not
    there, where only others make them.
    """

    expected: int = 0
    counted: int | None = None
    ambiguous: int = 0
    compared: int | None = None
    unmanaged: int = 0
    of_other_groups: int = 0
    reported: int | None = None
    absent: int = 0

    @property
    def fit(self) -> bool:
        """Whether the third party has as many records as it should have; those in flight may be there or not."""
        low = self.expected + self.unmanaged
        return self.counted is not None and low <= self.counted <= low + self.ambiguous

    def with_diff(self, diff: GroupDiff) -> RecordCounts:
        """Returns the counts after a comparison one by one, which counts the listing."""
        return replace(
            self,
            expected=diff.expected,
            counted=diff.listed,
            ambiguous=diff.ambiguous,
            compared=diff.listed,
            of_other_groups=diff.of_other_groups,
        )

    def mismatch_text(self) -> str | None:
        """Why more or fewer records are there than expected, though no difference was found; None where they fit.

        A full comparison counts the listing; the third party's own count may say something else.
        """
        if self.counted is None:
            return None
        reasons = []
        if self.counted != self.expected:
            known = (
                (self.ambiguous, "in flight"),
                (self.unmanaged, "unmanaged"),
                (self.of_other_groups, "of other business groups"),
                (self.absent, "not there, where only others make records (creates: never)"),
            )
            why = ", ".join(f"{number} {what}" for number, what in known if number)
            why = why or "records were compared one by one, and changed meanwhile"
            reasons.append(f"{self.counted} counted, {self.expected} expected: {why}")
        if self.compared is not None and self.reported not in (None, self.compared):
            reasons.append(f"'count' says {self.reported}, and the listing shows {self.compared}")
        return "; ".join(reasons) or None


async def count_records(scope: ValidationScope) -> RecordCounts:
    """Counts the records of the group at the third party, then those that it should have. Raises CallFailed."""
    counted = await scope.entity.third_party.count(scope.group)

    def read_counts(connection: Connection) -> RecordCounts:
        ours = run(connection, queries.COUNT_EXPECTED, **scope.parameters)[0]
        unmanaged = run(connection, queries.SELECT_KNOWN_UNMANAGED, entity=scope.entity.name, group=scope.group)[0][0]
        return RecordCounts(
            expected=ours.settled,
            counted=counted,
            ambiguous=ours.ambiguous,
            unmanaged=unmanaged,
            reported=counted,
        )

    return await scope.run_in_transaction(read_counts)
