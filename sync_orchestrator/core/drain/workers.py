"""Whether anything runs that works off what is due: a drain, or the sensor that starts one.

Commands say that something is pushed or repaired only where this holds.
"""

from __future__ import annotations

from sqlalchemy import Engine

from sync_orchestrator.core.drain.presence import at_work
from sync_orchestrator.core.systems.heartbeats import seconds_since_heartbeat

SENSOR_ALIVE_SECONDS = 90.0
"""A sensor that was not heard of for this time does not run: it reports at each tick."""


def is_worked_off(engine: Engine) -> bool:
    """Returns whether a drain runs now, or a sensor that starts one when work is due."""
    drains = at_work(engine)
    if drains.staying or drains.leaving:
        return True
    age = seconds_since_heartbeat(engine, "sensor")
    return age is not None and age <= SENSOR_ALIVE_SECONDS
