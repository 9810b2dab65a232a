"""How many business groups one process works on at once."""

from __future__ import annotations

GROUPS_SYNCED_AT_ONCE = 6
"""Full syncs. Each mostly waits for a page of its source or for responses of the third party, and memory does not grow
with its group. A SQL source has a use for as many connections."""

GROUPS_COMPARED_AT_ONCE = 4
"""Validations, checks of sources, plans and repairs. Fewer than full syncs, since each may hold two listings of its
group in memory."""
