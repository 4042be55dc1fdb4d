"""Keypoints are on the frame that is shown: in a real browser, on videos that carry the numbers of their frames."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from dlc_platform_tests.docs.screenshots import CHROMIUM
from dlc_platform_tests.web.pages.conftest import WRITTEN, LookedAt
from dlc_platform_tests.web.pages.looked_at import BODYPARTS, SIZE, number_in

_QUIET = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--autoplay-policy=no-user-gesture-required")
_PIXELS = 1.5


@pytest.fixture
def page() -> Iterator[Page]:
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}: install Debian's package chromium to test the pages")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_QUIET))
        page = browser.new_page(viewport={"width": 1280, "height": 1100})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


def test_keypoints_lie_on_the_frame_that_is_shown(looked_at: LookedAt, page: Page):
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    random = np.random.default_rng(7)
    for name, written in WRITTEN.items():
        page.goto(f"{looked_at.address}/sessions/sub-{name}_ses-1")
        page.wait_for_selector("[data-ready=true]")
        colours = page.locator(".parts .swatch").evaluate_all(
            "all => all.map(one => getComputedStyle(one).backgroundColor)"
        )
        points = looked_at.points[name]
        for frame in random.integers(0, len(points), 10).tolist():
            page.evaluate(f"location.hash = '#frame={frame}'")
            require_shown(page, frame)
            compare(page, points, written.first, colours)
        # One back, and on again by key.
        for key, step in (("ArrowLeft", -1), ("ArrowRight", 1), ("Shift+ArrowLeft", -10), ("ArrowRight", 1)):
            before = int(page.locator("#player").get_attribute("data-frame") or -1)
            page.keyboard.press(key)
            require_shown(page, min(max(before + step, 0), len(points) - 1))
            compare(page, points, written.first, colours)
        # Stopped in the middle of playing, wherever that is.
        page.evaluate("location.hash = '#frame=20'")
        require_shown(page, 20)
        for _ in range(2):
            page.keyboard.press("Space")
            page.wait_for_timeout(400)
            page.keyboard.press("Space")
            page.wait_for_timeout(300)
            assert int(page.locator("#player").get_attribute("data-frame") or -1) > 20
            compare(page, points, written.first, colours)
    assert errors == []


def require_shown(page: Page, frame: int) -> None:
    page.wait_for_selector(f'#player[data-frame="{frame}"] .screen canvas[data-frame="{frame}"]')


def compare(page: Page, points: np.ndarray, first: int, colours: list[str]) -> None:
    """See on a picture of the screen which frame it shows, and that each keypoint lies where the table says."""
    said = int(page.locator("#player").get_attribute("data-frame") or -1)
    png = page.locator(".screen").screenshot()
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    assert number_in(picture) - first == said
    scale = picture.shape[1] / SIZE[0]
    for number in range(len(BODYPARTS)):
        colour = np.array([int(part) for part in colours[number].removeprefix("rgb(").rstrip(")").split(",")])
        near = np.abs(picture - colour).sum(axis=2) < 60
        down, across = np.nonzero(near)
        x, y = points[said, number]
        here = np.hypot(across / scale - 0.5 - x, down / scale - 0.5 - y) < 12
        # Another keypoint may lie on top of it.
        others = np.delete(points[said], number, axis=0)
        if (np.hypot(*(others - points[said, number]).T) < 12).any():
            continue
        assert here.sum() > 20, f"no keypoint of {BODYPARTS[number]} near {x:.1f}, {y:.1f} in frame {said}"
        found = np.array([(across[here].mean() + 0.5) / scale - 0.5, (down[here].mean() + 0.5) / scale - 0.5])
        assert np.hypot(*(found - (x, y))) < _PIXELS
