"""A real browser for tests of pages."""

import contextlib
import shutil

from playwright.sync_api import expect, sync_playwright

# What a page shows at once may take long on a busy machine.
expect.set_options(timeout=60_000)


@contextlib.contextmanager
def opened_browser():
    """Debian's Chromium, headless, with an empty profile."""
    chromium = shutil.which("chromium")
    assert chromium, "chromium is missing; these tests need it: apt-get install chromium"
    with sync_playwright() as playwright:
        # As root, as in a container, it runs without a sandbox only.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()
