"""Change events of a part whose versions are the numbers of its database's log are refused."""

from __future__ import annotations

import pytest
from numbered_histories import numbered_config

from sync_orchestrator.errors import InvalidEvent
from sync_orchestrator.event_formats.cloud_events import change_event


@pytest.mark.parametrize("version", [{}, {"version": 7}, {"time": "2026-01-01T00:00:00Z"}])
def test_an_event_of_a_numbered_part_is_refused_with_a_sentence(version: dict[str, object]) -> None:
    event = {"specversion": "1.0", "id": "1", "source": "shop", "type": "item.updated", "subject": "a", **version}
    with pytest.raises(InvalidEvent, match="from which alone its changes come"):
        change_event(event, numbered_config())
