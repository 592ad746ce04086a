"""A real browser for tests of pages: the machine's own Chromium, cut off from every network.

Run as a script it says which one there is; the exit code is 1 if there is none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = (
    *("chromium-headless-shell", "chromium", "chromium-browser"),
    *("google-chrome", "google-chrome-stable"),
)
"""Commands that are looked for, in this order."""

PHONE, DESKTOP = (360, 740), (1280, 900)
"""Sizes of a window in pixels."""

SECONDS = 60
"""A page may take to load; it takes less than one, but a machine may be busy."""


def find_browser() -> str | None:
    """The path of a browser that starts, None without one."""
    paths = (path for name in NAMES if (path := shutil.which(name)))
    return next((path for path in paths if _starts(path)), None)


def _starts(path: str) -> bool:
    """Some systems have a command of that name that only says what to install."""
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


@contextmanager
def open_browser(path: str) -> Iterator[Any]:
    """Start a browser for as long as the context lasts.

    Args:
        path: of its program.
    """
    from playwright.sync_api import sync_playwright

    # No name is resolved, so that nothing could be loaded even if a page asked for it.
    flags = ["--host-resolver-rules=MAP * ~NOTFOUND"]
    if os.geteuid() == 0:
        # Chromium refuses to run as root inside its sandbox.
        flags.append("--no-sandbox")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=flags)
        try:
            yield browser
        finally:
            browser.close()


class Opened:
    """A page, with all that it asked for and complained about.

    Args:
        browser: to open it in.
        file: of the page.
        size: width and height of the window in pixels.
        scheme: "light" or "dark".
        scripts: whether pages may run any.
    """

    def __init__(
        self,
        browser: Any,
        file: Path,
        size: tuple[int, int] = DESKTOP,
        scheme: str = "light",
        scripts: bool = True,
    ) -> None:
        self._context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme=scheme,
            offline=True,
            java_script_enabled=scripts,
        )
        self.page = self._context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.goto(file.as_uri(), timeout=1000 * SECONDS)

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *error: object) -> None:
        self._context.close()


if __name__ == "__main__":
    found = find_browser()
    print(f"Browser for tests of pages: {found}." if found else "No browser for tests of pages.")
    sys.exit(found is None)
