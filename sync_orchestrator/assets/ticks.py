"""How often schedules look for what is due. Pure.

A cron line begins anew each hour and each day: ``*/45`` fires 15 and 45 minutes apart. A schedule therefore looks at a
regular interval of which every period is a multiple, and the core decides what is due.
"""

from __future__ import annotations

from math import gcd

from sync_orchestrator.config import Config

MAX_SOURCE_TICK_SECONDS = 3600.0
"""The schedule looks at least this often which sources are due."""

_HOUR, _DAY = 60, 1440


def tick_minutes(*periods_seconds: float) -> int:
    """The longest interval that meets every period on time: a divisor of an hour, or hours that divide a day.

    A period that is no whole number of minutes needs a look each minute, and so does one that is shorter.
    """
    common = _DAY
    for period in periods_seconds:
        common = gcd(common, int(period // 60) if period >= 60 and period % 60 == 0 else 1)
    return common if common % _HOUR == 0 else gcd(common, _HOUR)


def cron_line(minutes: int) -> str:
    """The cron line that fires every so many minutes, as ``tick_minutes`` gives them."""
    if minutes < _HOUR:
        return f"*/{minutes} * * * *"
    return "0 0 * * *" if minutes == _DAY else f"0 */{minutes // _HOUR} * * *"


def validation_tick_minutes(config: Config) -> int:
    """How often the schedule looks which validations are due."""
    return tick_minutes(*(entity.validation.every for entity in config.entities.values()))


def source_check_tick_minutes(config: Config) -> int:
    """How often the schedule looks which sources are due to be checked."""
    periods = [entity.source_check.every for entity in config.entities.values()]
    return tick_minutes(MAX_SOURCE_TICK_SECONDS, *(period for period in periods if period is not None))
