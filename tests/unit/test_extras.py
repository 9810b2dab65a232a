"""Optional dependencies: without an extra, the rest works, and a feature that needs it names the extra to install."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sync_orchestrator import brokers, composition, extras
from sync_orchestrator.brokers.queues import open_queue
from sync_orchestrator.brokers.receivers import KombuReceiver, RedisReceiver
from sync_orchestrator.cli import drift_export
from sync_orchestrator.cli.starter.samples import read_sample
from sync_orchestrator.config import ConsumerSettings, OutcomeReceiverSettings
from sync_orchestrator.core.notifications.alert_receivers import list_receivers
from sync_orchestrator.core.notifications.outcomes import OutcomeMessage
from sync_orchestrator.core.validation.drift_log import OverTime
from sync_orchestrator.errors import ConfigError, MissingExtra

PROJECT = Path(__file__).parents[2]
AMQP, REDIS = "amqp://127.0.0.1:1", "redis://127.0.0.1:1"
OUTCOME = OutcomeMessage(1, "e1", "mirrored", "item", "k1", {}, datetime(2026, 1, 1, tzinfo=UTC))

Remove = Callable[[str], str]


@pytest.fixture
def remove(monkeypatch: pytest.MonkeyPatch) -> Remove:
    """Makes the package of an extra impossible to import; returns the end of the sentence that reports it."""

    def remove_package(extra: str) -> str:
        package = extras._PACKAGES[extra]
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)
        for module in ("kombu_queue", "redis_queue"):  # they import the package at their beginning
            monkeypatch.delitem(sys.modules, f"{brokers.__name__}.{module}", raising=False)
            monkeypatch.delattr(brokers, module, raising=False)
        return f"needs the package {package}, which is not installed: pip install 'sync-orchestrator[{extra}]'"

    return remove_package


def test_each_extra_is_declared_and_all_has_every_one() -> None:
    declared = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert declared.keys() - {"all", "otel"} == extras._PACKAGES.keys() == extras._PURPOSES.keys()
    [everything] = declared["all"]
    assert everything == f"sync-orchestrator[{','.join(name for name in declared if name != 'all')}]"


@pytest.mark.parametrize("extra", extras._PACKAGES)
def test_an_extra_that_is_installed_is_found(extra: str, remove: Remove) -> None:
    assert extras.is_installed(extra)
    remove(extra)
    assert not extras.is_installed(extra)


def test_other_failures_of_an_import_are_not_hidden() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_package"), extras.import_from_extra("redis"):
        importlib.import_module("no_such_package")


@pytest.mark.parametrize(("extra", "url"), [("rabbitmq", AMQP), ("redis", REDIS)])
def test_a_consumer_without_its_broker(extra: str, url: str, remove: Remove) -> None:
    sentence = remove(extra)
    with pytest.raises(MissingExtra) as raised, open_queue(ConsumerSettings(url=url, queue="q"), "name"):
        pass
    assert str(raised.value).endswith(sentence)


@pytest.mark.parametrize(
    ("extra", "url", "receiver"), [("rabbitmq", AMQP, KombuReceiver), ("redis", REDIS, RedisReceiver)]
)
def test_a_receiver_of_outcomes_without_its_broker(
    extra: str, url: str, receiver: type[KombuReceiver | RedisReceiver], remove: Remove
) -> None:
    sentence = remove(extra)
    delivery = receiver(OutcomeReceiverSettings(url=url, queue="q")).deliver([OUTCOME])
    assert (delivery.taken, delivery.refused) == ([], {})
    assert delivery.down is not None
    assert delivery.down.endswith(sentence)


def test_an_alert_to_a_url_without_apprise(remove: Remove) -> None:
    sentence = remove("alerts")
    [receiver] = list_receivers(["json://localhost/secret"])
    assert receiver.deliver_message("title", "body") == f"alerts.urls[0]: An alert to a URL {sentence}"


def test_a_parquet_file_without_pyarrow(remove: Remove, tmp_path: Path) -> None:
    """Files of a source system are in ``test_file_source.py``."""
    sentence = remove("parquet")
    with pytest.raises(MissingExtra) as raised:
        drift_export.write_drift(tmp_path / "drift.parquet", [])
    assert str(raised.value).endswith(sentence)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError) as refused:
        read_sample(str(tmp_path / "rows.parquet"))
    assert str(refused.value).startswith("--source-files: ")
    assert str(refused.value).endswith(sentence)


def test_a_plot_without_matplotlib(remove: Remove, tmp_path: Path) -> None:
    sentence = remove("plots")
    with pytest.raises(MissingExtra) as raised:
        drift_export.plot_drift(tmp_path / "drift.svg", OverTime(timedelta(days=1), []))
    assert str(raised.value).endswith(sentence)
    assert not (tmp_path / "drift.svg").exists()


def test_the_trace_goes_on_without_an_sdk() -> None:
    """The extra ``otel`` adds spans. The headers need ``opentelemetry-api`` alone."""
    code = """
import sys
for name in ("opentelemetry.sdk", "opentelemetry.distro", "opentelemetry.instrumentation", "opentelemetry.exporter"):
    sys.modules[name] = None
from sync_orchestrator.core import tracing
parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
with tracing.continue_trace(tracing.trace_of(parent), "push item"):
    child = tracing.get_trace_headers()["traceparent"]
assert child != parent and child[:36] == parent[:36], child
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_configuration_that_needs_missing_extras_is_refused_with_the_lines(
    remove: Remove, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"""
sources:
  shop: {{base_url: "http://127.0.0.1:1"}}
third_parties:
  erp: {{base_url: "http://127.0.0.1:1"}}
entities:
  item:
    owner: shop
    parts:
      shop: {{key: key, group: store, version: {{path: v, kind: number}}, list: {{path: /}}}}
    mapping: {{code: key, name: shop.name}}
    third_party:
      system: erp
      key_field: code
      create: {{method: POST, path: /}}
      update: {{method: PUT, path: "/{{{{ id }}}}"}}
      delete: {{method: DELETE, path: "/{{{{ id }}}}"}}
      read: {{path: "/{{{{ id }}}}"}}
      list: {{path: /}}
alerts:
  urls: ["json://localhost"]
consumers:
  queue: {{url: "{AMQP}", queue: q}}
  list: {{url: "{REDIS}", queue: q}}
outcomes:
  webhook: {{url: "https://hooks.example.com"}}
  exchange: {{url: "{AMQP}", exchange: e}}
"""
    path = tmp_path / "sync.yaml"
    path.write_text(text)
    monkeypatch.setenv("SYNC_CONFIG", str(path))
    composition.load_config()
    sentences = {extra: remove(extra) for extra in ("alerts", "rabbitmq", "redis")}
    with pytest.raises(ConfigError) as raised:
        composition.load_config()
    lines = str(raised.value).splitlines()
    expected = [
        ("alerts.urls.0", "alerts"),
        ("consumers.queue.url", "rabbitmq"),
        ("consumers.list.url", "redis"),
        ("outcomes.exchange.url", "rabbitmq"),
    ]
    assert len(lines) == len(expected)
    for line, (place, extra) in zip(lines, expected, strict=True):
        assert f": {place}: " in line
        assert line.endswith(sentences[extra])
