"""The plan of a full sync of a business group, and the draft in which it is gathered."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sync_orchestrator.core.context import EntityContext
from sync_orchestrator.core.full_sync.source_listing import EXAMPLES
from sync_orchestrator.core.ports import Found
from sync_orchestrator.core.values.mapping import compute_digest

COUNTS = {
    "create": "made at the third party",
    "update": "changed there",
    "delete": "deleted there",
    "unchanged": "there as they should be",
    "moved": "gone to another business group",
    "over_cap": "not deleted, since too many would be or the listing is not proven complete",
    "duplicates": "of those created, how many have a key that is there already",
    "unusable": "parts that cannot be used",
    "behind": "shown by the source at an older version, with other content than the archive",
    "unmapped": "records that the mapping cannot turn into a payload",
    "incomplete": "without a required part, so not pushed",
    "on_hold": "on hold for an operator, so not pushed",
    "discarded": "given up by an operator, so not pushed until they change",
    "drift": "other there than acknowledged, which validation looks after",
    "absent": "not there, where only others make records (creates: never), so they wait",
    "not_sent": "deleted here and left there (deletes: never)",
    "unmanaged": "there without ever having been put there by us, left alone",
}
"""What a plan counts."""

WORRIES = ("over_cap", "duplicates", "unusable", "behind", "unmapped", "incomplete", "on_hold")
"""Counts for which a person should look before the full sync."""

_MAX_SAMPLES = 5
_MAX_FIELDS = 10


@dataclass(frozen=True, slots=True)
class Sample:
    """One planned action; ``fields`` has rows of field, ours, theirs."""

    key: str
    action: str
    fields: list[dict[str, Any]]


@dataclass(slots=True)
class GroupPlan:
    """What a full sync of a group would do; ``digest`` tells one set of actions and contents from another.

    ``counts`` by the names of COUNTS, those that are not zero. ``notes``: what a person should know.
    """

    entity: str
    group: str
    listed: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    digest: str = ""

    @property
    def worries(self) -> bool:
        """Whether a person should look at it before the full sync."""
        return any(name in self.counts for name in WORRIES)


class PlanDraft:
    """Gathers the counts, actions, samples and notes of a plan."""

    def __init__(self, entity: EntityContext, group: str) -> None:
        self.listed = 0
        self._entity = entity
        self._group = group
        self._counts: dict[str, int] = defaultdict(int)
        self._samples: dict[str, list[Sample]] = defaultdict(list)
        self._actions: list[list[str]] = []
        self._notes: list[str] = []

    @property
    def holds_deletions(self) -> bool:
        """Whether deletions are held back."""
        return "over_cap" in self._counts

    def add_count(self, name: str, n: int = 1) -> None:
        """Adds to one of COUNTS."""
        self._counts[name] += n

    def hold_deletions(self, reason: str, keys: Sequence[str]) -> None:
        """Notes that deletions are held back."""
        self._notes.append(f"deletions are held: {reason}")
        for key in keys:
            self._counts["over_cap"] += 1
            self._actions.append(["over_cap", key])

    def add_action(self, action: str, key: str, *, ours: bytes | None = None, theirs: Found | None = None) -> None:
        """Counts an action on a record. It distinguishes this plan from others, with the digests of both sides."""
        shown = None if theirs is None else self._entity.mapping.digest_of_theirs(theirs.fields)
        self._counts[action] += 1
        self._actions.append([action, key, (ours or b"").hex(), (shown or b"").hex()])

    def wants_sample(self, action: str) -> bool:
        """Whether there are too few samples of an action yet."""
        return len(self._samples[action]) < _MAX_SAMPLES

    def add_sample(
        self,
        action: str,
        key: str,
        ours: dict[str, object],
        theirs: Found | None,
        place_differences: Sequence[dict[str, object]] = (),
    ) -> None:
        """Adds a sample, unless there are enough of the action."""
        if self.wants_sample(action):
            rows = self._entity.mapping.list_differences(ours, {} if theirs is None else theirs.fields)
            self._samples[action].append(Sample(key, action, [*place_differences, *rows][:_MAX_FIELDS]))

    def add_note(self, note: str) -> None:
        """Adds what a person should know, unless there are enough notes."""
        if len(self._notes) < EXAMPLES:
            self._notes.append(note)

    def build_plan(self, *, unusable: int, problems: Sequence[str]) -> GroupPlan:
        """Returns the plan.

        Args:
            unusable: How many parts cannot be used.
            problems: What is wrong with the first of them.
        """
        if unusable:
            self._counts["unusable"] = unusable
        for problem in problems:
            self.add_note(problem)
        if "duplicates" in self._counts:
            self.add_note(
                "records with these keys are there already: where the third party does not refuse a second one, "
                "creates make duplicates; third_party.lookup with search_first takes over what is there"
            )
        return GroupPlan(
            self._entity.name,
            self._group,
            listed=self.listed,
            counts={name: self._counts[name] for name in COUNTS if self._counts[name]},
            samples=[sample for samples in self._samples.values() for sample in samples],
            notes=self._notes,
            digest=compute_digest(sorted(self._actions)).hex(),
        )
