"""Running one notebook through papermill, so that its outcome can be believed.

Papermill's artefact says "completed" after a dead kernel, a time-out or ``sys.exit``; here only a notebook
that ran to its end, left its stage and raised nothing counts. The executed notebook grows as
``NN_x.part.ipynb`` and is renamed to ``NN_x.ipynb`` or ``NN_x.failed.ipynb``.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from starling_nb import THREADS_WAIT, files
from starling_nb.errors import StarlingError
from starling_nb.judge.connect import DOLLARS
from starling_nb.runner.notebook import Notebook

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ARROW = re.compile(r"^-+> ?(\d+)", re.MULTILINE)
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class NotebookFailed(StarlingError):  # noqa: N818 (it is what happened, in the user's words)
    """A notebook did not run to its end; the message fits on one screen."""


def environment(
    parameters: Mapping[str, Any], stage: str, progress: Path, dollars: float | None = None
) -> dict[str, str]:
    """The kernel's environment: quiet OpenMP threads, batch mode, the hub only for a model of the hub, and the most
    that its judges may cost."""
    threads = str(parameters.get("threads", 2))
    own = {
        **THREADS_WAIT,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(files.ROOT), os.environ.get("PYTHONPATH", "")])),
        "STARLING_NB_HEADLESS": "1",
        "STARLING_NB_STAGE": stage,
        "STARLING_NB_PROGRESS": str(progress),
        "TOKENIZERS_PARALLELISM": "false",
    }
    if not any(isinstance(value, str) and _from_hub(name, value) for name, value in parameters.items()):
        own |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    if dollars is not None:
        own[DOLLARS] = str(dollars)
    return {**os.environ, **own}


def _from_hub(name: str, value: str) -> bool:
    return name != "out" and _HUB.fullmatch(value) is not None and not (files.ROOT / value).exists()


def execute(
    book: Notebook,
    parameters: Mapping[str, Any],
    folder: Path,
    env: Mapping[str, str],
    started: Callable[[int], None],
    timeout: int | None = None,
) -> Path:
    """Run ``book`` and return the executed notebook in ``folder``.

    Args:
        started: called with the kernel's process number.
        timeout: seconds that one cell may take.

    Raises:
        NotebookFailed: a cell raised, the kernel died, a cell took too long, or some cell was never reached.
    """
    part, done, failed = (folder / f"{book.name}{end}.ipynb" for end in (".part", "", ".failed"))
    for old in (part, done, failed, done.with_suffix(".html"), failed.with_suffix(".html")):
        old.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    processes: list[subprocess.Popen[bytes]] = []

    def begun(process: subprocess.Popen[bytes]) -> None:
        processes.append(process)
        started(process.pid)

    try:
        _papermill(book, parameters, part, env, begun, timeout)
        _reached_the_end(part)
    except BaseException as error:
        if part.exists():
            os.replace(part, failed)
        message = _explain(error, book, timeout, processes[0].returncode if processes else None)
        if message is None:
            raise
        raise NotebookFailed(f"{message}\nexecuted notebook: {failed}") from error
    files.write_text(done, _clean(part.read_text(encoding="utf-8")))
    part.unlink()
    return done


def _papermill(
    book: Notebook,
    parameters: Mapping[str, Any],
    part: Path,
    env: Mapping[str, str],
    begun: Callable[[subprocess.Popen[bytes]], None],
    timeout: int | None,
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own deprecations are not the user's business
        import nbformat
        import papermill
        from jupyter_client.manager import AsyncKernelManager
        from traitlets.config import Config

        class Kernel(AsyncKernelManager):
            """This interpreter's kernel, whatever kernels are installed, in the environment above."""

            async def start_kernel(self, **kw: Any) -> None:  # type: ignore[override]
                assert self.kernel_spec is not None
                self.kernel_spec.argv = [
                    sys.executable,
                    "-m",
                    "ipykernel_launcher",
                    "--log-level=50",  # a kernel that is shut down has nothing to complain of
                    "-f",
                    "{connection_file}",
                ]
                await super()._async_start_kernel(**{**kw, "env": dict(env)})
                begun(self.provisioner.process)  # type: ignore[union-attr]

        logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what goes wrong is raised, and told once
        papermill.execute_notebook(
            nbformat.read(book.path, as_version=4),
            str(part).replace("{", "{{").replace("}", "}}"),
            parameters=dict(parameters),
            kernel_name="python3",
            progress_bar=False,
            cwd=files.ROOT,
            execution_timeout=timeout,
            kernel_manager_class=Kernel,
            config=Config({"KernelManager": {"transport_encryption": "auto"}}),
        )


def _reached_the_end(path: Path) -> None:
    cells = [cell for cell in files.read_json(path)["cells"] if cell["cell_type"] == "code"]
    for position, cell in enumerate(cells, 1):
        if cell["execution_count"] is None and "".join(cell["source"]).strip():
            raise NotebookFailed(
                f"it stopped before code cell {position} of {len(cells)} without an error: exit() in a cell?"
            )


def _explain(error: BaseException, book: Notebook, timeout: int | None, code: int | None) -> str | None:
    """The error as one screen of text, or None where it is none of the notebook's; ``code`` is the kernel's."""
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    if isinstance(error, PapermillExecutionError):
        trace = _COLOUR.sub("", "\n".join(error.traceback))
        arrow = _ARROW.search(trace)
        lines = error.source.splitlines() or [""]
        line = min(int(arrow[1]), len(lines)) if arrow else 1
        text = _COLOUR.sub("", str(error.evalue))
        where = f"{book.name} failed in code cell In [{error.exec_count}], line {line}:"
        return f"{where}\n    {lines[line - 1].strip()}\n{error.ename}: {_short(text)}"
    if isinstance(error, DeadKernelError):
        return f"{book.name}: {_death(code)}"
    if isinstance(error, CellTimeoutError):
        return f"{book.name}: a cell took more than the {timeout} s that --timeout allows."
    return f"{book.name}: {error}" if isinstance(error, NotebookFailed) else None


def _death(code: int | None) -> str:
    """What a kernel died of, by its exit code, and what to do."""
    if code is None or code >= 0:
        return f"the kernel ended by itself (code {code}): does a cell call exit() or os._exit()?"
    name = signal.Signals(-code).name
    if name == "SIGKILL":
        return "the kernel was killed, likely for want of memory. Close programs or take a smaller profile."
    return f"the kernel died of {name}, inside a library: run it again, or install the versions of constraints.txt."


def _short(text: str, lines: int = 12, width: int = 2000) -> str:
    kept = text[:width].splitlines()
    return "\n".join(kept[:lines] + (["…"] if len(kept) > lines or len(text) > width else []))


def _clean(content: str) -> str:
    """Drop what changes from run to run or tells the machine: papermill's notes, times, the root folder."""
    book = json.loads(content.replace(str(files.ROOT) + os.sep, ""))
    book["metadata"].pop("papermill", None)
    book["metadata"].pop("widgets", None)
    for cell in book["cells"]:
        for key in ("papermill", "execution", "exception"):
            cell["metadata"].pop(key, None)
    return json.dumps(book, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
