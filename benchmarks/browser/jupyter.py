"""A JupyterLab of its own, and a hand in it: open a notebook, run all cells, look at what stands below them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nbformat
from playwright.sync_api import Browser, Locator, Page

from benchmarks.browser import SIZE, audit
from starling_nb import THREADS_WAIT, files
from starling_nb.errors import StarlingError

START = 300.0
"""Seconds that the server gets to start."""
WAIT = 300_000.0
"""Milliseconds that a kernel gets to start, and a click to be answered."""
STRIP = 4000
"""Height of one picture of a notebook, CSS pixels."""
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}


def copied(source: Path, folder: Path, parameters: Mapping[str, Any]) -> Path:
    """A copy of a notebook with other values in its ``parameters`` cell, as somebody types them in.

    Raises:
        StarlingError: it has no such parameter.
    """
    book = nbformat.read(source, as_version=4)
    cell = next(cell for cell in book.cells if "parameters" in cell.metadata.get("tags", ()))
    lines = cell.source.splitlines()
    for name, value in parameters.items():
        places = [i for i, line in enumerate(lines) if line.startswith(f"{name}:")]
        if not places:
            raise StarlingError(f"{source.name} has no parameter {name!r}")
        typed, _, rest = lines[places[0]].partition(" = ")
        lines[places[0]] = f"{typed} = {value!r}  #{rest.partition('  #')[2]}"
    cell.source = "\n".join(lines)
    path = folder / source.name
    nbformat.write(book, path)
    return path


@contextmanager
def served(folder: Path, settings: Path, theme: str = "light") -> Iterator[str]:
    """JupyterLab over ``folder``, on the loopback, which keeps all of its own in ``settings``; its address.

    Raises:
        StarlingError: it did not start.
    """
    _configure(settings, theme)
    own = {f"JUPYTER_{name}_DIR": str(settings / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    own |= {"JUPYTERLAB_SETTINGS_DIR": str(settings / "lab"), "JUPYTERLAB_WORKSPACES_DIR": str(settings / "workspaces")}
    own |= {"IPYTHONDIR": str(settings / "ipython"), "PYTHONPATH": f"{files.ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    line = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1"]
    line += ["--ServerApp.port=0", "--LabApp.expose_app_in_browser=True", f"--ServerApp.root_dir={folder}"]
    with (settings / "server.log").open("wb") as log:
        server = subprocess.Popen(line, env={**os.environ, **THREADS_WAIT, **own}, stdout=log, stderr=log)
    try:
        yield _address(server, settings)
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _configure(settings: Path, theme: str) -> None:
    """A quiet Lab that draws all cells, so that everything can be looked at."""
    chosen: dict[str, dict[str, Any]] = {
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
        "apputils-extension/themes": {"theme": THEMES[theme]},
        "notebook-extension/tracker": {"windowingMode": "none"},
    }
    for name, values in chosen.items():
        files.write_json(settings / "lab" / "@jupyterlab" / f"{name}.jupyterlab-settings", values)


def _address(server: subprocess.Popen[bytes], settings: Path) -> str:
    until = time.monotonic() + START
    while time.monotonic() < until and server.poll() is None:
        for path in (settings / "runtime").glob("jpserver-*.json"):
            try:
                told = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:  # it is being written
                continue
            return f"{told['url']}lab/tree/{{path}}?token={told['token']}&reset"
        time.sleep(0.1)
    log = (settings / "server.log").read_text(encoding="utf-8", errors="replace")
    raise StarlingError(f"JupyterLab did not start: {log[-2000:]}")


class OpenNotebook:
    """A notebook that stands open in a tab of the browser.

    Attributes:
        page: the tab.
        faults: errors of scripts, and addresses elsewhere that the page asked for.
    """

    def __init__(self, browser: Browser, address: str, name: str) -> None:
        self.page: Page = browser.new_page(viewport=SIZE)
        self.faults: list[str] = []
        origin = address.partition("lab/tree")[0]
        self.page.on("pageerror", lambda error: self.faults.append(f"script: {error}"))
        self.page.on("request", lambda request: self._asked(origin, request.url))
        self.page.set_default_navigation_timeout(WAIT)
        self.page.goto(address.format(path=quote(name)))
        self.page.wait_for_selector(".jp-NotebookPanel", timeout=WAIT)
        self.page.set_default_timeout(WAIT)
        self._call(
            "await panel.context.ready; await panel.sessionContext.ready;"
            "if (!app.shell.leftCollapsed) await app.commands.execute('application:toggle-left-area')"
        )

    def _asked(self, origin: str, url: str) -> None:
        if not url.startswith((origin, origin.replace("http", "ws", 1), "data:", "blob:")):
            self.faults.append(f"request: {url}")

    def _call(self, script: str, seconds: float = WAIT / 1000) -> Any:
        """What a script of the page returns.

        Raises:
            StarlingError: that takes longer than ``seconds``.
        """
        body = f"(async () => {{ const app = window.jupyterapp, panel = app.shell.currentWidget; {script} }})()"
        late = f"new Promise(end => setTimeout(() => end({{ late: true }}), {1000 * seconds}))"
        found = self.page.evaluate(f"async () => Promise.race([{body}.then(value => ({{ value }})), {late}])")
        if found.get("late"):
            raise StarlingError(f"JupyterLab is not done after {seconds:.0f} s with: {script}")
        return found.get("value")

    def run(self, seconds: float) -> None:
        """Run all cells.

        Raises:
            StarlingError: that takes longer than ``seconds``.
        """
        self._call("await app.commands.execute('notebook:run-all-cells')", seconds)

    @property
    def content(self) -> nbformat.NotebookNode:
        """The notebook as it stands in the page's memory."""
        return nbformat.from_dict(self._call("return panel.content.model.toJSON()"))

    def errors(self) -> list[str]:
        """What went wrong in cells: errors, and cells that were never run."""
        found = []
        for number, cell in enumerate(self.content.cells):
            if cell.cell_type != "code":
                continue
            if cell.execution_count is None and cell.source.strip():
                found.append(f"cell {number} was not run")
            outputs = [output for output in cell.outputs if output.output_type == "error"]
            found += [f"cell {number}: {output.ename}: {output.evalue}" for output in outputs]
        return found

    def blanks(self) -> list[str]:
        """Widgets that show nothing and bars that stand at 0 %."""
        return [what for what in audit.faults(self.page, ".jp-Notebook") if what.startswith(("blank", "bar"))]

    def save(self) -> None:
        """Write the notebook, outputs included, where it was read."""
        self._call("await app.commands.execute('docmanager:save')")

    def cell(self, text: str) -> Locator:
        """The cell whose code holds ``text``."""
        return self.page.locator(".jp-CodeCell", has=self.page.locator(".jp-InputArea", has_text=text)).first

    def photograph(self, stem: Path) -> None:
        """Pictures of the whole notebook, from the top, ``<stem>_00.png`` and so on."""
        area = self.page.locator(".jp-WindowedPanel-outer")
        height = area.evaluate("area => area.scrollHeight")
        self.page.set_viewport_size({"width": SIZE["width"], "height": min(STRIP, height + 150)})
        for number, top in enumerate(range(0, height, STRIP - 150)):
            area.evaluate(f"area => {{ area.scrollTop = {top} }}")
            self.page.screenshot(path=stem.with_name(f"{stem.name}_{number:02}.png"))
        self.page.set_viewport_size(SIZE)

    def close(self) -> None:
        """End the kernel and close the tab."""
        self._call("await panel.sessionContext.shutdown()")
        self.page.close()
