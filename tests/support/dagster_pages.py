"""Dagster's pages as a user works with them: where to click, and what to read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from playwright.sync_api import Page, TimeoutError, sync_playwright
from ui_play import Play, eventually

PATIENCE_MS = 45_000
LOCATION = "/locations/sync_orchestrator"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def browser_page(program: str) -> Iterator[Page]:
    """A page of a browser without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light")
        page.set_default_timeout(PATIENCE_MS)
        yield page
        browser.close()


class Dagster:
    """The UI in a browser. ``pictures``: the folder that gets a picture of a scene; None takes none."""

    def __init__(self, page: Page, play: Play, pictures: Path | None) -> None:
        self._page = page
        self._play = play
        self._pictures = pictures

    def picture(self, name: str) -> None:
        """Keeps what the page shows now."""
        if self._pictures is not None:
            self._pictures.mkdir(parents=True, exist_ok=True)
            self._page.screenshot(path=self._pictures / f"{name}.png")

    def open(self, path: str) -> Page:
        """Opens one of Dagster's pages."""
        self._page.goto(f"{self._play.url}{path}")
        return self._page

    def see(self, *texts: str) -> None:
        """Waits until the page shows these texts."""
        for text in texts:
            self._page.get_by_text(text).first.wait_for()

    def shows(self, path: str, text: str) -> bool:
        """Whether one of Dagster's pages, opened anew, shows a text within seconds."""
        try:
            self.open(path).get_by_text(text).first.wait_for(timeout=5000)
        except TimeoutError:
            return False
        return True

    # Full sync ------------------------------------------------------------------------------------------------------

    def launch_full_sync(self, *, only_failed: bool = False) -> str:
        """Materializes all assets of the entity, over all business groups; returns the id of the backfill."""
        before = self._backfills()
        page = self.open(f"{LOCATION}/asset-groups/product/lineage")
        page.get_by_text("Materialize all").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_text("Failed and missing" if only_failed else "All", exact=True).click()
        self.picture("launch_full_sync" if not only_failed else "resume_full_sync")
        dialog.get_by_text("Launch backfill").click()
        return eventually(
            lambda: next((new for new in self._backfills() if new not in before), ""), "the backfill is launched"
        )

    def _backfills(self) -> list[str]:
        found = self._play.ask("{partitionBackfillsOrError(limit: 20) {... on PartitionBackfills {results {id}}}}")
        return [each["id"] for each in found["partitionBackfillsOrError"]["results"]]

    def backfill_status(self, backfill: str) -> str:
        """The status of a backfill, such as ``COMPLETED_SUCCESS``."""
        found = self._play.ask(
            f'{{partitionBackfillOrError(backfillId: "{backfill}") {{... on PartitionBackfill {{status}}}}}}'
        )
        return str(found["partitionBackfillOrError"]["status"])

    def runs_of(self, backfill: str) -> list[str]:
        """The ids of a backfill's runs."""
        found = self._play.ask(
            f'{{runsOrError(filter: {{tags: [{{key: "dagster/backfill", value: "{backfill}"}}]}}) '
            "{... on Runs {results {id}}}}"
        )
        return [each["id"] for each in found["runsOrError"]["results"]]

    def cancel_backfill(self, backfill: str) -> None:
        """Cancels a backfill on its page, as its menu offers."""
        page = self.open(f"/runs/b/{backfill}")
        page.get_by_text("Partition selection").first.wait_for()
        self.picture("full_sync_under_way")
        page.locator("button").filter(has=page.locator('[aria-label="expand_more"]')).last.click()
        page.get_by_role("menuitem", name="Cancel backfill").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_role("button").filter(has_text="ancel").last.click()

    # Jobs -----------------------------------------------------------------------------------------------------------

    def launchpad(self, job: str) -> Page:
        """Opens the launchpad of a job."""
        page = self.open(f"{LOCATION}/jobs/{job}/playground")
        page.locator(".CodeMirror").first.wait_for()
        return page

    def launch(self, job: str, config: dict[str, object] | None = None) -> str:
        """Launches a job from its launchpad, with its default configuration or another; returns the run's id."""
        before = self._runs(job)
        page = self.launchpad(job)
        if config is not None:
            page.locator(".CodeMirror").first.click()
            page.keyboard.press("ControlOrMeta+A")
            page.keyboard.insert_text(yaml.safe_dump(config, sort_keys=False))
        launch = page.get_by_role("button", name="Launch Run")
        eventually(launch.is_enabled, "the launchpad accepts the configuration")
        launch.click()
        return eventually(lambda: next((new for new in self._runs(job) if new not in before), ""), f"{job} is launched")

    def _runs(self, job: str) -> list[str]:
        found = self._play.ask(
            f'{{runsOrError(filter: {{pipelineName: "{job}"}}, limit: 20) {{... on Runs {{results {{id}}}}}}}}'
        )
        return [each["id"] for each in found["runsOrError"]["results"]]

    def finish(self, run: str, status: str) -> None:
        """Waits until a run has ended, with this status."""
        ended = eventually(lambda: self._end_of(run), f"run {run} ends")
        assert ended == status, self.open(f"/runs/{run}").inner_text("body")

    def _end_of(self, run: str) -> str | None:
        status = self._play.run_status(run)
        return status if status in ("SUCCESS", "FAILURE", "CANCELED") else None

    # Checks ---------------------------------------------------------------------------------------------------------

    def check(self, asset: str, name: str) -> None:
        """Opens the page of a check of the entity's archive or mirror."""
        self.open(f"/assets/product/{asset}?view=checks&checkDetail={name}").get_by_text(name).first.wait_for()

    def partitions_of_check(self) -> None:
        """Shows the partitions of the check whose page is open."""
        self._page.get_by_role("tab", name="Partitions").last.click()

    def freshness_of_mirror(self) -> str:
        """What the badge of the mirror is drawn from."""
        found = self._play.ask(
            '{assetNodeOrError(assetKey: {path: ["product", "mirror"]}) {... on AssetNode {'
            "freshnessStatusInfo {freshnessStatus}}}}"
        )
        return str(found["assetNodeOrError"]["freshnessStatusInfo"]["freshnessStatus"])

    def status_of_check(self, name: str) -> str:
        """The status of a check of the mirror, severity and description of its newest evaluation."""
        found = self._play.ask(
            '{assetNodeOrError(assetKey: {path: ["product", "mirror"]}) {... on AssetNode {'
            "assetChecksOrError {... on AssetChecks {checks {name executionForLatestMaterialization "
            "{status evaluation {severity description}}}}}}}}"
        )
        checks = found["assetNodeOrError"]["assetChecksOrError"]["checks"]
        [check] = [check for check in checks if check["name"] == name]
        newest = check["executionForLatestMaterialization"]
        if newest is None or newest["evaluation"] is None:
            return ""
        return f"{newest['status']} {newest['evaluation']['severity']} {newest['evaluation']['description']}"


def pictures_folder() -> Path | None:
    """Where pictures are kept: ``SYNC_UI_PICTURES``, or nowhere."""
    folder = os.environ.get("SYNC_UI_PICTURES")
    return Path(folder) if folder else None
