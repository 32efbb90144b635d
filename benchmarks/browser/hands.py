"""What a reader does with the widgets of a notebook: votes in the arena, turns the pages of a browser."""

from __future__ import annotations

import re

from playwright.sync_api import Locator, Page, expect

from benchmarks.browser.jupyter import WAIT
from starling_nb.explore import voting_view

SETTLE = 1000 * voting_view.PAUSE + 500
"""Milliseconds until the arena takes the next vote for meant."""


def vote(page: Page, cell: Locator) -> int:
    """Cast three votes in the arena below ``cell``, the first by a double click, which has to count once; how many
    battles there were.

    Raises:
        AssertionError: the arena does not go on from battle to battle.
    """
    status = cell.get_by_text(re.compile(r"Battle \d+ of \d+|All battles are decided"))
    expect(status).to_have_text(re.compile("Battle 1 of"), timeout=WAIT)
    total = int(status.inner_text().split()[-1])
    for number, (label, click) in enumerate(
        (("A is better", Locator.dblclick), ("tie", Locator.click), ("B is better", Locator.click)), 2
    ):
        click(cell.get_by_role("button", name=label, exact=True))
        after = f"Battle {number} of {total}" if number <= total else "All battles are decided."
        expect(status).to_have_text(after, timeout=WAIT)
        page.wait_for_timeout(SETTLE)  # a second vote of the double click would be there by now
        expect(status).to_have_text(after)
    return total


def turn(cell: Locator, word: str) -> int:
    """Go on, back, and search for ``word`` in the pages below ``cell``; how many pages hold it.

    Raises:
        AssertionError: the pages do not turn.
    """
    place = cell.get_by_text(re.compile(r"^\d+ of \d+$|^nothing found$"))
    expect(place).to_have_text(re.compile("^1 of"), timeout=WAIT)
    total = int(place.inner_text().split()[-1])
    for button, at in (("on", 2), ("on", 3), ("back", 2)):
        cell.get_by_role("button", name=button, exact=True).click()
        expect(place).to_have_text(f"{min(at, total)} of {total}", timeout=WAIT)
    field = cell.get_by_placeholder("search, and press Enter")
    field.fill("no page holds this, surely")
    field.press("Enter")
    expect(place).to_have_text("nothing found", timeout=WAIT)
    field.fill(word)
    field.press("Enter")
    expect(place).to_have_text(re.compile("^1 of"), timeout=WAIT)
    return int(place.inner_text().split()[-1])
