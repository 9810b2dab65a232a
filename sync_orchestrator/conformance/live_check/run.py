"""Tries out the logins of all systems, then captured logs, then each entity: its sources, and its third party."""

from __future__ import annotations

import asyncio

from sync_orchestrator.adapters.factory import build_clients, third_parties_behind
from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.config import Config
from sync_orchestrator.config.sources import SharedSourceSettings
from sync_orchestrator.conformance.live_check.capture_steps import check_captures
from sync_orchestrator.conformance.live_check.entity_steps import Trial
from sync_orchestrator.conformance.live_check.report import CheckStep, LiveCheckReport, Told
from sync_orchestrator.conformance.live_check.source_steps import SourceSteps
from sync_orchestrator.conformance.live_check.third_party_steps import ThirdPartySteps
from sync_orchestrator.conformance.pacing import paces_of
from sync_orchestrator.conformance.tried_sources import build_tried_sources
from sync_orchestrator.errors import SyncError


async def check_live(config: Config, group: str | None = None, *, told: Told | None = None) -> LiveCheckReport:
    """Tries every entity with one business group: the given one, or else the first that its owner names."""
    report = LiveCheckReport()

    def add_step(step: CheckStep) -> None:
        report.steps.append(step)
        if told is not None:
            told(step)

    clients = build_clients(config, paces_of(config))
    sources, third_parties = build_tried_sources(config, clients), third_parties_behind(config, clients)
    reached = await _log_in_systems(config, add_step)
    await asyncio.to_thread(check_captures, config, add_step)
    accounts: set[str] = set()
    for name in config.entities:
        trial = Trial(config, name, sources[name], third_parties[name], reached, accounts, add_step)
        found, row = await SourceSteps(trial).run(group)
        await ThirdPartySteps(trial).run(found, row)
    for parts in sources.values():
        for source in parts.values():
            await source.close()
    for third_party in third_parties.values():
        await third_party.close()
    return report


async def _log_in_systems(config: Config, tell: Told) -> set[str]:
    """Logs in wherever that takes a call; returns the systems that can be gone on with, by place."""
    reached: set[str] = set()
    for section, systems in (("sources", config.sources), ("third_parties", config.third_parties)):
        for name, system in systems.items():
            place = f"{section}.{name}"
            if isinstance(system, SharedSourceSettings):
                continue  # its third party logs in for both
            if getattr(getattr(system, "auth", None), "kind", None) != "login" or not getattr(system, "base_url", ""):
                reached.add(place)
                continue
            http = HttpClient(system)  # type: ignore[arg-type]  # what has a login is reached over HTTP
            try:
                await http.log_in()
            except SyncError as error:
                tell(
                    CheckStep(
                        "",
                        name,
                        "login",
                        "failed",
                        str(error),
                        f"see {place}.auth, and the secrets that it takes from the environment",
                    )
                )
            else:
                reached.add(place)
                tell(CheckStep("", name, "login", "ok", "logged in"))
            finally:
                await http.close()
    shared = {name for name, source in config.sources.items() if isinstance(source, SharedSourceSettings)}
    return reached | {f"sources.{name}" for name in shared if f"third_parties.{name}" in reached}
