"""Is a page fit to be read: nothing cut off, nothing blank, nothing fetched, and legible for everybody.

The rules are in ``audit.js``; contrast is that of the Web Content Accessibility Guidelines 2, level AA (4.5 to 1, for
large text 3 to 1), computed from the styles that the browser has settled on.
"""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Browser, Page

from benchmarks.browser import SCHEMES, SIZE

SCRIPT = Path(__file__).with_name("audit.js").read_text(encoding="utf-8")
STRIP = 2400
"""Height of one picture of a long page, CSS pixels."""


def faults(page: Page, root: str = "body") -> list[str]:
    """What is wrong with the part ``root`` (a CSS selector) of an open page."""
    found: list[str] = page.evaluate(SCRIPT, root)
    return found


def read(browser: Browser, path: Path, pictures: Path | None = None) -> list[str]:
    """What is wrong with the page in the file ``path``, opened in a light and in a dark window.

    Args:
        pictures: folder for pictures of the page, in strips; none are taken without.
    """
    found = []
    for scheme in SCHEMES:
        page = browser.new_page(viewport=SIZE, color_scheme=scheme)
        asked: list[str] = []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.on("console", lambda message, asked=asked: asked.append(f"{message.type}: {message.text}"))
        page.goto(path.resolve().as_uri())
        elsewhere = [what for what in asked if not what.startswith(("file:", "data:"))]
        found += [f"{scheme}, {what}" for what in faults(page) + [f"asked for: {what}" for what in elsewhere]]
        if pictures is not None:
            photograph(page, pictures / f"{path.stem}_{scheme}")
        page.close()
    return found


def photograph(page: Page, stem: Path) -> None:
    """Pictures of a whole page, from the top, ``<stem>_00.png`` and so on."""
    height = page.evaluate("document.documentElement.scrollHeight")
    page.set_viewport_size({"width": SIZE["width"], "height": min(STRIP, height)})
    for number, top in enumerate(range(0, height, STRIP)):
        page.evaluate(f"window.scrollTo(0, {top})")
        page.screenshot(path=stem.with_name(f"{stem.name}_{number:02}.png"))
