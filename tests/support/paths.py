"""Where the repository and the helpers of the tests are, whatever folder a test is in."""

from __future__ import annotations

from pathlib import Path

SUPPORT = Path(__file__).resolve().parent
ROOT = SUPPORT.parent.parent
