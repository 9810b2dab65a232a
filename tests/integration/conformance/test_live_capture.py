"""``check --live`` of a captured source: what the source's database lacks is named with the command that helps."""

from __future__ import annotations

from captured_sources import ITEMS, CapturedSource, captured_config, machine_server, source, wheel_server

from sync_orchestrator.conformance.live_check.capture_steps import check_captures
from sync_orchestrator.conformance.live_check.report import CheckStep

__all__ = ["machine_server", "source", "wheel_server"]


def steps_of(source: CapturedSource) -> list[CheckStep]:
    steps: list[CheckStep] = []
    check_captures(captured_config(source), steps.append)
    return steps


def test_a_source_without_a_publication_fails_and_one_with_it_is_ok(source: CapturedSource) -> None:
    source.execute(ITEMS)
    [failed, *_] = [step for step in steps_of(source) if step.outcome == "failed"]
    assert (failed.system, failed.what) == ("shop", "capture")
    assert "there is no publication sync_orchestrator" in failed.detail
    assert "sync-orchestrator capture prepare shop" in failed.hint
    source.publish("items")
    found = steps_of(source)
    assert [step.detail for step in found if step.outcome == "ok"] == ["the log has the changes of items"]
    assert not [step for step in found if step.outcome == "failed"]


def test_a_key_outside_of_the_replica_identity_fails(source: CapturedSource) -> None:
    source.execute(ITEMS + "; ALTER TABLE items REPLICA IDENTITY NOTHING")
    source.publish("items")
    assert any("replica identity" in step.detail for step in steps_of(source) if step.outcome == "failed")


def test_a_server_that_cannot_be_reached_fails_with_the_setting(source: CapturedSource) -> None:
    source.database = "nowhere"
    [step] = steps_of(source)
    assert step.outcome == "failed"
    assert "sources.shop.capture.url" in step.hint
