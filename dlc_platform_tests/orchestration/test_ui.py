"""What a person does in a browser: materialise, see the picture, read the metadata."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from dlc_platform.postgres import server
from dlc_platform_tests.docs.screenshots import take
from dlc_platform_tests.orchestration.up import Up, wait_for

CHROMIUM = Path("/usr/bin/chromium")
SESSION = "sub-001_ses-001"
_QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def lab(tracked_lab: Path) -> Iterator[Up]:
    up = Up(tracked_lab)
    up.ensure()
    yield up
    up.ensure_down()
    server.ensure_running(tracked_lab / "postgres")


@pytest.fixture
def page() -> Iterator[Page]:
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}: install Debian's package chromium to test the UI")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*_QUIET, "--no-first-run"])
        page = browser.new_page(viewport={"width": 1500, "height": 1100})
        page.set_default_timeout(120_000)
        yield page
        browser.close()


def last_run(asset: str) -> str | None:
    """The run that materialised an asset last for the session."""
    wanted = dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[SESSION])
    with dg.DagsterInstance.get() as instance:
        found = instance.fetch_materializations(wanted, limit=1).records
        return found[0].run_id if found else None


def test_a_person_materialises_poses_and_sees_them(page: Page, lab: Up):
    # The first visit, by the address that `up` prints: the token leaves the address, and the browser is known.
    page.goto(lab.address)
    assert page.url.startswith(lab.url) and "token" not in page.url
    # The graph, and no dialog that asks for anything.
    page.goto(f"{lab.url}/asset-groups")
    for group in ("sessions", "models", "poses"):
        page.get_by_text(group, exact=True).first.wait_for()
    page.wait_for_load_state("networkidle")
    assert page.get_by_role("dialog").count() == 0
    assert page.locator("input[type=email]").count() == 0

    before = last_run("pose_estimates")
    events = f"{lab.url}/assets/pose_estimates?view=events&partition={SESSION}"
    page.goto(events)
    page.get_by_role("button", name="Materialize").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text(SESSION).first.wait_for()
    dialog.get_by_role("button", name="Launch 1 run").click()
    run = wait_for(lambda: now if (now := last_run("pose_estimates")) != before else None)

    # Its log comes live, through a WebSocket.
    with page.expect_websocket(lambda socket: socket.url.endswith("/graphql")) as listening:
        page.goto(f"{lab.url}/runs/{run}")
    wait_for(lambda: not listening.value.is_closed())
    page.get_by_text("pose_estimates").first.wait_for()
    page.get_by_text("RUN_SUCCESS").first.wait_for()

    page.goto(events)
    page.get_by_text(run[:8]).first.wait_for()
    for body_part in ("snout", "leftear", "rightear", "tailbase"):
        # The row of the inner table: the whole table is a cell of the metadata's own row.
        row = page.get_by_role("cell", name=body_part, exact=True).first.locator("xpath=..")
        *_, likelihood, _, _ = (cell.inner_text() for cell in row.get_by_role("cell").all())
        assert 0 <= float(likelihood) <= 1

    page.get_by_text("[Show Markdown]").first.click()
    picture = page.locator('img[src^="data:image/"]')
    picture.wait_for()
    assert picture.evaluate("image => image.naturalWidth") > 300
    assert SESSION in (picture.get_attribute("alt") or "")


def test_the_pictures_of_the_documentation_are_taken(page: Page, lab: Up, tmp_path: Path) -> None:
    page.goto(lab.address)
    for file in take(page, lab.url, SESSION, tmp_path):
        assert Image.open(file).width > 300 and 5_000 < file.stat().st_size < 400_000
