"""A message as brokers deliver it."""

from __future__ import annotations

from broker_consumers import (
    cloud_event,
    packed,
)
from brokers import broker as broker
from brokers import rabbit as rabbit

ATTRIBUTES = {name: value for name, value in cloud_event().items() if name != "data"}


DATA = packed(cloud_event()["data"])
