"""The models of ``sync.yaml`` and its loading. What a setting means stands here, and nowhere a default twice."""

from sync_orchestrator.config.brokers import ConsumerSettings, OutcomeReceiverSettings
from sync_orchestrator.config.bulk_calls import BulkCallSettings
from sync_orchestrator.config.calls import (
    CountCallSettings,
    FilterCheckSettings,
    ListCallSettings,
    OutcomeRule,
    ReadCallSettings,
    RequestSettings,
    WriteCallSettings,
)
from sync_orchestrator.config.document import (
    AlertSettings,
    ApiSettings,
    Config,
    LimitSettings,
    RetentionSettings,
    UiSettings,
)
from sync_orchestrator.config.entities import (
    DeletionSettings,
    EntitySettings,
    RetrySettings,
    SourceCheckSettings,
    ValidationSettings,
)
from sync_orchestrator.config.http_access import HttpSettings
from sync_orchestrator.config.loading import load, parse_config
from sync_orchestrator.config.routes import RouteSettings
from sync_orchestrator.config.sources import PartSettings, Source, VersionSettings
from sync_orchestrator.config.targets import BreakerSettings, TargetSettings, ThirdPartySettings

__all__ = [
    "AlertSettings",
    "ApiSettings",
    "BreakerSettings",
    "BulkCallSettings",
    "Config",
    "ConsumerSettings",
    "CountCallSettings",
    "DeletionSettings",
    "EntitySettings",
    "FilterCheckSettings",
    "HttpSettings",
    "LimitSettings",
    "ListCallSettings",
    "OutcomeReceiverSettings",
    "OutcomeRule",
    "PartSettings",
    "ReadCallSettings",
    "RequestSettings",
    "RetentionSettings",
    "RetrySettings",
    "RouteSettings",
    "Source",
    "SourceCheckSettings",
    "TargetSettings",
    "ThirdPartySettings",
    "UiSettings",
    "ValidationSettings",
    "VersionSettings",
    "WriteCallSettings",
    "load",
    "parse_config",
]
