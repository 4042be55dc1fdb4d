"""The pictures of README and of the documentation's first page, taken of a lab that the demo made.

``uv run python -m dlc_platform_tests.docs.screenshots demo-lab`` takes them anew and puts them where the pages look for
them; `orchestration/test_ui.py` takes the same of its own lab.
"""

import base64
import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

import dlc_platform
from dlc_platform.demo.lab import UNSEEN
from dlc_platform.orchestration.up import running
from dlc_platform.orchestration.web_access import address

CHROMIUM = Path("/usr/bin/chromium")
ASSETS = Path(dlc_platform.__file__).parent / "docs" / "pages" / "assets"
SIZE = {"width": 1280, "height": 860}


def take(page: Page, url: str, session: str, folder: Path) -> tuple[Path, Path]:
    """The UI with the poses of a session, and the picture of these poses that it shows, as WebP files.

    Parameters
    ----------
    page
        A browser that the lab lets in.
    url
        The address of the UI, without a slash at the end.
    """
    page.set_viewport_size(SIZE)  # pyright: ignore[reportArgumentType]
    page.goto(f"{url}/assets/pose_estimates?view=events&partition={session}")
    show = page.get_by_text("[Show Markdown]").first
    show.wait_for()
    page.wait_for_load_state("networkidle")
    ui = _save(page.screenshot(), folder / "ui.webp")
    show.click()
    picture = page.locator('img[src^="data:image/"]').first
    picture.wait_for()
    source = picture.get_attribute("src") or ""
    return ui, _save(base64.b64decode(source.partition("base64,")[2]), folder / "poses.webp")


def _save(picture: bytes, file: Path) -> Path:
    Image.open(io.BytesIO(picture)).convert("RGB").save(file, quality=80, method=6)
    return file


def main(home: Path) -> None:
    """Take them of a demo's lab, which is started for it."""
    subject, session = next(iter(UNSEEN))
    with running(home, None, print) as services, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.goto(address(home, int(services.url.rsplit(":", 1)[1])))
        for file in take(page, services.url, f"sub-{subject}_ses-{session}", ASSETS):
            print(f"{file}: {file.stat().st_size / 1000:.0f} kB")
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
