"""The same conversation in JupyterLab: a line to write in, and a table that grows."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets

from starling_nb.errors import StarlingError
from starling_nb.explore.talk import Talk


class TalkView(widgets.VBox):
    """Shows a :class:`starling_nb.explore.talk.Talk`; where no widget can be drawn (an export) it is its table."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        wide = {"width": "100%"}
        self.line = widgets.Text(placeholder="say something, and press Enter", continuous_update=False, layout=wide)
        self.buttons = {name: widgets.Button(description=name) for name in ("again", "undo", "new")}
        self.told, self.shown = widgets.Label(), widgets.HTML(talk.to_html())
        self.line.observe(self._typed, "value")
        for name, button in self.buttons.items():
            button.on_click(lambda _, name=name: self.do(name))
        super().__init__([self.shown, self.line, widgets.HBox(list(self.buttons.values())), self.told])

    def do(self, name: str, text: str = "") -> None:
        """Say ``text``, or what the button of that name does; what goes wrong is told below the line."""
        talk, self.told.value = self.talk, ""
        try:
            {"say": lambda: talk.say(text), "again": talk.again, "undo": talk.undo, "new": talk.new}[name]()
        except StarlingError as error:
            self.told.value = str(error)
        self.shown.value = talk.to_html()

    def _typed(self, change: dict[str, Any]) -> None:
        if change["new"].strip():
            self.line.value = ""
            self.do("say", change["new"])

    def _repr_mimebundle_(self, **given: Any) -> dict[str, Any]:
        found: dict[str, Any] = super()._repr_mimebundle_(**given) or {}
        return {**found, "text/html": self.talk.to_html(), "text/plain": f"a talk of {self.talk.turns} turns"}
