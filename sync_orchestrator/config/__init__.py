"""The models of ``sync.yaml`` and its loading. What a setting means stands here, and nowhere a default twice.

Not here: what is done with the settings (``composition.py`` puts the system together from them).
"""

from sync_orchestrator.config.brokers import Consumer, OutcomeReceiver
from sync_orchestrator.config.bulk_calls import Bulk
from sync_orchestrator.config.calls import Count, FilterCheck, Get, Listing, Outcome, Request, Write
from sync_orchestrator.config.document import Alerts, ApiSettings, Config, Limits, Retention, UiSettings
from sync_orchestrator.config.entities import Deletions, Entity, Retry, SourceCheck, Validation
from sync_orchestrator.config.http_access import Http
from sync_orchestrator.config.loading import load, read
from sync_orchestrator.config.routes import Route
from sync_orchestrator.config.sources import Part, Source, Version
from sync_orchestrator.config.targets import Breaker, Target, ThirdPartySystem

__all__ = [
    "Alerts",
    "ApiSettings",
    "Breaker",
    "Bulk",
    "Config",
    "Consumer",
    "Count",
    "Deletions",
    "Entity",
    "FilterCheck",
    "Get",
    "Http",
    "Limits",
    "Listing",
    "Outcome",
    "OutcomeReceiver",
    "Part",
    "Request",
    "Retention",
    "Retry",
    "Route",
    "Source",
    "SourceCheck",
    "Target",
    "ThirdPartySystem",
    "UiSettings",
    "Validation",
    "Version",
    "Write",
    "load",
    "read",
]
