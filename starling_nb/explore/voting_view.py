"""Votes by hand in JupyterLab: a thin view of :class:`starling_nb.evaluation.arena.voting.ArenaSession`.

Where nobody watches, the recorded votes are shown as plain tables and nothing waits for a click.
"""

from __future__ import annotations

import html
import math
import time
from typing import Any

from starling_nb import progress
from starling_nb.evaluation import EvaluationError
from starling_nb.evaluation.arena.voting import CHOICES, ArenaSession

PAUSE = 0.5
"""Seconds after a click, and after a battle was drawn, that take no vote and no undo: the second click of a double one
was meant for the battle before, and nobody has read these answers yet."""
LABELS = {"A": "A is better", "B": "B is better", "tie": "tie", "both bad": "both are bad"}


class ArenaView:
    """Buttons and answers as widgets; display it as the last line of a cell.

    Attributes:
        buttons: by choice, and ``undo`` and ``reveal``.
        status, prompt, a, b, tables: the parts that show text, HTML with every text of others escaped.
    """

    def __init__(self, session: ArenaSession) -> None:
        import ipywidgets as widgets

        self.session = session
        self.status, self.prompt, self.a, self.b, self.tables = (widgets.HTML() for _ in range(5))
        for part in (self.status, self.prompt, self.a, self.b, self.tables):
            _as_in_cells(part)
        for side in (self.a, self.b):
            side.layout = widgets.Layout(width="50%", padding="0 1em")
        labels = {**LABELS, "undo": "undo", "reveal": "reveal"}
        self.buttons = {name: widgets.Button(description=label) for name, label in labels.items()}
        for name, button in self.buttons.items():
            button.on_click(lambda _, name=name: self.press(name))
        answers = widgets.HBox([self.a, self.b])
        self.box = widgets.VBox(
            [self.status, self.prompt, answers, widgets.HBox([*self.buttons.values()]), self.tables]
        )
        self._draw()
        self._drawn = self._clicked = -math.inf  # nothing was pressed yet

    def press(self, name: str) -> None:
        """Do what a button says, but see :data:`PAUSE`; what goes wrong is shown above the answers."""
        clicked = _clicked()
        early = clicked - self._clicked < PAUSE or time.monotonic() - self._drawn < PAUSE
        if name != "reveal" and early:
            return
        self._clicked = clicked
        try:
            if name in CHOICES:
                self.session.vote(name)
            else:
                {"undo": self.session.undo, "reveal": self.session.reveal}[name]()
        except EvaluationError as error:
            self._draw(str(error))
        else:
            self._draw()

    def _draw(self, problem: str = "") -> None:
        shown = self.session.current
        for name in CHOICES:
            self.buttons[name].disabled = shown is None
        self.prompt.value, self.a.value, self.b.value = "", "", ""
        told = "All battles are decided."
        if shown is not None:
            told = f"Battle {shown.number} of {shown.total}"
            self.prompt.value = _paragraph("Prompt", shown.prompt)
            self.a.value, self.b.value = _paragraph("A", shown.a), _paragraph("B", shown.b)
        self.status.value = f"<p>{told}</p>" + (f"<p><b>{html.escape(problem)}</b></p>" if problem else "")
        self.tables.value = tables(self.session) if self.session.revealed else ""
        self._drawn = time.monotonic()

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        """The live widget, and for viewers without widgets how far the votes are."""
        found = self.box._repr_mimebundle_(**kwargs) or {}
        text = self.tables.value or f"<p>{html.escape(repr(self.session))}</p>"
        return {**found, "text/html": text, "text/plain": repr(self.session)}


class ArenaTables:
    """The recorded votes as plain tables."""

    def __init__(self, session: ArenaSession) -> None:
        self.session = session

    def _repr_html_(self) -> str:
        return tables(self.session)

    def __repr__(self) -> str:
        found = self.session.summary()
        return "\n\n".join(f"{name}\n{table.to_string(index=False)}" for name, table in found.items() if len(table))


def show(session: ArenaSession) -> ArenaView | ArenaTables:
    """Vote where somebody watches (JupyterLab); elsewhere look at the votes that are there."""
    return ArenaView(session) if progress.watched() else ArenaTables(session)


def tables(session: ArenaSession) -> str:
    """The session's summary as HTML."""
    found = session.summary()
    parts = [
        f"<p><b>{name}</b></p>{table.to_html(index=False, border=0, na_rep='', float_format='{:.3g}'.format)}"
        for name, table in found.items()
        if len(table)
    ]
    return "".join(parts)


def _as_in_cells(part: Any) -> None:
    """Let JupyterLab draw a widget's text and tables as it draws those of a cell."""
    for name in ("jp-RenderedHTMLCommon", "jp-RenderedMarkdown"):
        part.add_class(name)


def _clicked() -> float:
    """When the button was pressed, seconds: by the browser's clock where a kernel passes it on, which may come late."""
    from IPython.core.getipython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    header = kernel.get_parent().get("header", {}) if kernel is not None else {}
    return float(header["date"].timestamp()) if hasattr(header.get("date"), "timestamp") else time.time()


def _paragraph(title: str, text: str) -> str:
    return f"<p><b>{title}</b></p><div style='white-space: pre-wrap'>{html.escape(text)}</div>"
