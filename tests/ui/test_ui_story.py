"""What a user does in the Dagster UI, by clicks in a browser: `make test-ui`.

One story on one running system; each scene begins where the one before ended. With ``SYNC_UI_PICTURES`` set to a
folder, the pictures of the documentation are made.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import find_browser
from dagster_pages import Dagster, browser_page, pictures_folder
from databases import create, drop
from ui_play import PRODUCTS_EACH, SHOPS, Play, eventually, playing

BROWSER = find_browser()
ALL = PRODUCTS_EACH * len(SHOPS)

pytestmark = [
    pytest.mark.ui,
    pytest.mark.timeout(600),
    pytest.mark.skipif(BROWSER is None, reason="needs a Chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def play(server_url: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Play]:
    """The company and the running system."""
    url = create(server_url, "ui_story", template)
    with playing(tmp_path_factory.mktemp("ui"), url) as running:
        yield running
    drop(server_url, url)


@pytest.fixture(scope="module")
def dagster(play: Play) -> Iterator[Dagster]:
    """The UI in a browser."""
    assert BROWSER is not None
    with browser_page(BROWSER) as page:
        yield Dagster(page, play, pictures_folder())


def in_sync(play: Play) -> bool:
    """Whether the third party holds exactly what the back office has, seen from outside of the product."""
    theirs = {item["sku"]: (item["shop"], item["name"], item["price"]) for item in play.erp.items.values()}
    ours = {sku: (record["shop"], record["name"], record["price"]) for sku, record in play.backoffice.products.items()}
    return theirs == ours and len(play.erp.items) == len(ours)


def test_a_full_sync_is_launched_and_canceled(play: Play, dagster: Dagster) -> None:
    play.erp.write_seconds = 1.5
    backfill = dagster.launch_full_sync()
    eventually(lambda: play.erp.writes >= 4, "the first records are written")
    [run] = dagster.runs_of(backfill)
    dagster.cancel_backfill(backfill)
    dagster.finish(run, "CANCELED")
    eventually(lambda: dagster.backfill_status(backfill) == "CANCELED", "the backfill is canceled")
    assert play.erp.writes < ALL
    play.erp.write_seconds = 0.0  # what is archived is due, and the incremental sync pushes it
    dagster.open(f"/runs/{run}")
    dagster.see("Canceled")


def test_the_next_full_sync_goes_on_where_it_stopped(play: Play, dagster: Dagster) -> None:
    before = play.erp.writes
    backfill = dagster.launch_full_sync()
    eventually(lambda: dagster.backfill_status(backfill).startswith("COMPLETED"), "the backfill ends")
    assert dagster.backfill_status(backfill) == "COMPLETED_SUCCESS"
    assert in_sync(play)
    assert play.erp.writes <= ALL + 4, f"{before} writes before, {play.erp.writes} after"
    dagster.open(f"/runs/b/{backfill}")
    dagster.see("100% completed")
    dagster.picture("full_sync_done")
    dagster.open("/locations/sync_orchestrator/asset-groups/product/lineage")
    dagster.see("100% filled")
    dagster.picture("lineage")


def test_a_live_change_is_seen(play: Play, dagster: Dagster) -> None:
    key = play.command("keys", "create", "backoffice", "--scope", "events:backoffice").split()[-1]
    play.change_price("lyon-03", 777, key)
    eventually(lambda: play.erp.item("lyon-03")["price"] == 777, "the change arrives")
    eventually(
        lambda: dagster.shows("/assets/product/mirror?view=events&partition=lyon", "lyon-03"),
        "the drain reports the changed record",
    )
    run = dagster.launch(
        "show_record", {"ops": {"show_one_record": {"config": {"entity": "product", "key": "lyon-03"}}}}
    )
    dagster.finish(run, "SUCCESS")


def test_damage_turns_the_check_red_and_a_repair_turns_it_green(play: Play, dagster: Dagster) -> None:
    play.erp.item("oslo-02")["price"] = 1
    del play.erp.items[play.erp.item("porto-05")["id"]]
    dagster.finish(dagster.launch("validate_fully"), "SUCCESS")
    dagster.check("mirror", "count_then_diff")
    dagster.see("1 missing; 1 to be repaired by hand: launch the job repair")
    dagster.picture("failed_check")
    dagster.partitions_of_check()
    dagster.see("Failed (2)", "Passed (4)")
    eventually(lambda: "FAILED" in dagster.status_of_check("open_alerts"), "the alert turns the check red")
    dagster.check("mirror", "open_alerts")
    dagster.see("product oslo: 1 different")
    dagster.picture("open_alerts")
    dagster.finish(dagster.launch("repair"), "SUCCESS")
    eventually(lambda: in_sync(play), "the repair arrives")
    dagster.finish(dagster.launch("validate_fully"), "SUCCESS")
    dagster.check("mirror", "count_then_diff")
    dagster.partitions_of_check()
    dagster.see("Passed (6)")
    eventually(lambda: "SUCCEEDED" in dagster.status_of_check("open_alerts"), "the end of the alert turns it green")


def test_the_badge_of_the_mirror_says_that_it_is_fresh(dagster: Dagster) -> None:
    eventually(lambda: dagster.freshness_of_mirror() == "HEALTHY", "the freshness is evaluated")
    dagster.open("/assets/product/mirror")
    dagster.see("Freshness policy")
    dagster.picture("freshness")


def test_a_full_sync_fails_with_its_cause_while_the_third_party_is_stopped(play: Play, dagster: Dagster) -> None:
    play.erp.running.clear()
    for sku in ("turin-00", "turin-01", "lisbon-00"):
        play.backoffice.products[sku].update(price=5, updated_at="2026-03-01T10:00:00Z")
    backfill = dagster.launch_full_sync()
    eventually(lambda: dagster.backfill_status(backfill).startswith(("COMPLETED", "FAILED")), "the backfill ends")
    [run] = dagster.runs_of(backfill)
    assert (dagster.backfill_status(backfill), play.run_status(run)) == ("COMPLETED_FAILED", "FAILURE")
    dagster.open(f"/runs/{run}")
    dagster.see("business groups of product are not in sync")
    dagster.picture("full_sync_failed")
    eventually(lambda: "FAILED" in dagster.status_of_check("open_alerts"), "the alert turns the check red")
    play.erp.running.set()
    eventually(lambda: in_sync(play), "what waited goes on")
    backfill = dagster.launch_full_sync()
    eventually(lambda: dagster.backfill_status(backfill) == "COMPLETED_SUCCESS", "the next full sync succeeds")
    eventually(lambda: "SUCCEEDED" in dagster.status_of_check("open_alerts"), "the end of the alerts turns it green")


def test_pause_and_resume(play: Play, dagster: Dagster) -> None:
    dagster.finish(
        dagster.launch("pause", {"ops": {"pause_pushes": {"config": {"name": "product", "reason": "stocktaking"}}}}),
        "SUCCESS",
    )
    eventually(lambda: "is paused" in dagster.status_of_check("open_alerts"), "the check shows the pause")
    dagster.check("mirror", "open_alerts")
    dagster.see("product is paused")
    dagster.picture("paused")
    dagster.finish(dagster.launch("resume", {"ops": {"resume_pushes": {"config": {"name": "product"}}}}), "SUCCESS")
    eventually(lambda: "SUCCEEDED" in dagster.status_of_check("open_alerts"), "the check is green again")


def test_a_misspelt_group_fails_with_the_nearest_name(play: Play, dagster: Dagster) -> None:
    run = dagster.launch("validate", {"ops": {"validate_groups": {"config": {"groups": ["olso"]}}}})
    dagster.finish(run, "FAILURE")
    dagster.open(f"/runs/{run}")
    dagster.see("unknown business group 'olso' of product; did you mean oslo")


def test_launchpads_explain_themselves(dagster: Dagster, play: Play) -> None:
    page = dagster.launchpad("repair")
    editor = page.locator(".CodeMirror").first
    assert "allow_deletions: null" in editor.inner_text()
    editor.get_by_text("entity").click()
    dagster.see("Only this entity.")
    dagster.picture("launchpad")


def test_no_page_had_an_error(play: Play) -> None:
    for log in Path(play.environment["SYNC_HOME"], "logs").glob("*.log"):
        assert "Traceback" not in log.read_text(), log
