"""A page in headless Chromium, for tests of what a person sees; Debian's own Chromium, driven by Playwright."""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

__all__ = ["Tab", "browser", "needs_chromium"]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
SECONDS = 30.0  # for a page to do what is waited for

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt install chromium)")


class Tab:
    """errors: console errors and uncaught exceptions since `goto`. requests: addresses asked for since then."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        self.requests: list[str] = []
        page.set_default_timeout(1000 * SECONDS)
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def goto(self, url: str) -> None:
        """Open and wait for the load event."""
        self.errors.clear()
        self.requests.clear()
        self.page.goto(url)

    def look(self, width: int, height: int, dark: bool = False) -> None:
        """Another window and colour scheme for the page that is open."""
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.emulate_media(color_scheme="dark" if dark else "light")

    def evaluate(self, script: str, argument: Any = None) -> Any:
        """The value of an expression, or of a function called with `argument`; a promise is awaited."""
        return self.page.evaluate(script, argument)

    def wait(self, selector: str) -> None:
        """Until an element is visible; raises Playwright's `TimeoutError` after `SECONDS`."""
        self.page.wait_for_selector(selector)

    def wait_until(self, script: str) -> None:
        """Until an expression is true."""
        self.page.wait_for_function(script)

    def click(self, selector: str) -> None:
        self.page.click(selector)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """A PNG of the whole page, or of the window."""
        self.page.screenshot(path=path, full_page=whole)


@contextmanager
def browser(width: int = 1280, height: int = 900, dark: bool = False) -> Generator[Tab]:
    """A fresh profile with one tab. Starting takes about a second: share one among tests, and `look` to resize."""
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            scheme = "dark" if dark else "light"
            yield Tab(chromium.new_page(viewport={"width": width, "height": height}, color_scheme=scheme))
        finally:
            chromium.close()
