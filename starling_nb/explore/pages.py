"""Paging through many things, one at a time, by hand or as a list that needs no hand."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import ipywidgets as widgets

from starling_nb import progress

T = TypeVar("T")


class Pages(Generic[T]):
    """Things of which one is looked at.

    Args:
        items: all of them.
        draw: one as HTML, with every text escaped.
        words: what a search looks into.
    """

    def __init__(self, items: Sequence[T], draw: Callable[[T], str], words: Callable[[T], str]) -> None:
        self.items, self.draw, self.words = items, draw, words
        self.found, self.place = list(range(len(items))), 0

    def search(self, text: str) -> int:
        """Keep to things whose words hold ``text``, whatever its case; how many they are."""
        self.found = [i for i, item in enumerate(self.items) if text.lower() in self.words(item).lower()]
        self.place = 0
        return len(self.found)

    def go(self, step: int) -> None:
        """``step`` things further, at most to the first or last."""
        self.place = max(0, min(self.place + step, len(self.found) - 1))

    def page(self) -> str:
        """The thing that is looked at."""
        if not self.found:
            return "<p>nothing found</p>"
        told = f"<p>{self.place + 1} of {len(self.found)}</p>"
        return told + self.draw(self.items[self.found[self.place]])

    def to_html(self, n: int = 3) -> str:
        """The first ``n``, one below the other, and how many there are."""
        first = [self.draw(self.items[i]) for i in self.found[:n]]
        return f"<p>{len(first)} of {len(self.found)}</p>" + "<hr>".join(first)


class PagesView(widgets.VBox):
    """Pages in JupyterLab: back, on, and a field to search; in an export the first few."""

    def __init__(self, pages: Pages[Any]) -> None:
        self.pages = pages
        self.buttons = {step: widgets.Button(description=name) for step, name in ((-1, "back"), (1, "on"))}
        self.field = widgets.Text(placeholder="search, and press Enter", continuous_update=False)
        self.shown = widgets.HTML(pages.page())
        for name in ("jp-RenderedHTMLCommon", "jp-RenderedMarkdown"):
            self.shown.add_class(name)  # JupyterLab draws its tables as those of a cell
        for step, button in self.buttons.items():
            button.on_click(lambda _, step=step: self._draw(lambda: pages.go(step)))
        self.field.observe(lambda change: self._draw(lambda: pages.search(change["new"])), "value")
        super().__init__([widgets.HBox([*self.buttons.values(), self.field]), self.shown])

    def _draw(self, change: Callable[[], Any]) -> None:
        change()
        self.shown.value = self.pages.page()

    def _repr_mimebundle_(self, **given: Any) -> dict[str, Any]:
        found: dict[str, Any] = super()._repr_mimebundle_(**given) or {}
        return {**found, "text/html": self.pages.to_html(), "text/plain": f"{len(self.pages.found)} pages"}


def browse(pages: Pages[Any]) -> Any:
    """What a notebook's cell returns: buttons where somebody looks at it, the first few pages in a batch run."""
    from IPython.display import HTML

    return PagesView(pages) if progress.watched() else HTML(pages.to_html())


def escaped(text: str) -> str:
    """Text as HTML, its lines kept."""
    return html.escape(text).replace("\n", "<br>")
