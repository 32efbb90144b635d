"""Chromium without a screen: pages and notebooks as a reader meets them.

Playwright is the hand, the system's own Chromium the browser; nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from starling_nb.errors import StarlingError

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome")
SIZE = {"width": 1280, "height": 900}
"""The window, in CSS pixels."""
SCHEMES = ("light", "dark")
FLAGS = ("--disable-gpu", "--disable-background-networking", "--disable-component-update", "--no-first-run")


def missing() -> str:
    """Why there is no browser here, and what to do; empty where there is one."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed: pip install playwright (it is in the extra `dev`)"
    if _program() is None:
        return "Chromium is not installed (Debian, Ubuntu: apt install chromium)"
    return ""


def _program() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser, closed at the end.

    Raises:
        StarlingError: there is none, see :func:`missing`.
    """
    if reason := missing():
        raise StarlingError(reason)
    from playwright.sync_api import sync_playwright

    # Chromium's own sandbox refuses to run as root, as in most containers.
    flags = [*FLAGS, "--no-sandbox"] if os.geteuid() == 0 else list(FLAGS)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=_program(), args=flags)
        try:
            yield browser
        finally:
            browser.close()
