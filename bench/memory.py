"""How much memory this process has held at most. Not ``ru_maxrss``: that begins with what its parent held."""

from __future__ import annotations

from pathlib import Path


def peak_megabytes() -> float:
    """Resident, in megabytes. Linux only."""
    told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return float(told["VmHWM"].split()[0]) / 1024
