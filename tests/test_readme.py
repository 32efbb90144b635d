"""README and docs tell the truth: commands work, links lead somewhere, tree and table name what is there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer

from starling_nb import cli, fetch, files, profiles, reproduce
from starling_nb.judge.connect import SIMULATED, connect
from starling_nb.nectar import prompts
from starling_nb.nectar.responses import making
from starling_nb.reproduce import Plan, Result

ROOT = files.ROOT
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
ALL = "\n\n".join([README, *PAGES.values()])
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TREE, TABLE = "How it hangs together", "The story"
"""Headings of the section with the tree and of the one with the notebooks."""
PROGRAMS = ("make", "starling-nb")
SECRET = "sk-do-not-write-me-down"


@dataclass(frozen=True)
class Line:
    """A line of a fenced block, and the heading it stands under."""

    heading: str
    text: str


def fenced(text: str) -> list[Line]:
    """The lines of all fenced blocks, empty ones left out and continued ones joined."""
    found, heading, inside = [], "", False
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            inside = not inside
        elif inside and line.strip():
            found.append(Line(heading, line))
        elif not inside and line.startswith("#"):
            heading = line.strip("# ")
    assert not inside, "a fence is left open"
    return found


def prose(text: str) -> str:
    """What stands outside the fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def words(command: str) -> list[str]:
    """A command as a shell splits it, without the prompt in front and the comment behind."""
    return shlex.split(re.split(r"(?:^|\s)#", command.strip().removeprefix("$ "))[0])


def commands(text: str, program: str) -> list[str]:
    """The commands of a program, in fenced blocks and in the prose's inline code."""
    shown = [line.text for line in fenced(text) if line.heading != TREE]
    shown += re.findall(rf"`({program} [^`\n]+)`", prose(text))
    found = [words(command) for command in shown]
    return list(dict.fromkeys(shlex.join(command) for command in found if command[:1] == [program]))


def strangers(text: str) -> list[str]:
    """Lines of fenced blocks that begin with a program which no test here runs."""
    shown = [line.text for line in fenced(text) if line.heading != TREE]
    return [line for line in shown if words(line) and words(line)[0] not in PROGRAMS]


def tree(text: str) -> list[str]:
    """The paths that the tree names, folders with a slash behind."""
    found, above = [], ""
    for line in (line.text for line in fenced(text) if line.heading == TREE):
        for name in re.split(r":|\s{2,}", line.strip())[0].split(", "):
            found.append(above + name if line.startswith(" ") else name)
        above = above if line.startswith(" ") else found[-1]
    return found


def absent(paths: list[str], root: Path = ROOT) -> list[str]:
    """The paths that are not there: a slash behind means a folder, none a module or a package."""
    return [
        path
        for path in paths
        if not (root / path).is_dir() and (path.endswith("/") or not (root / f"{path}.py").is_file())
    ]


def table(text: str) -> list[str]:
    """The notebooks that the table lists."""
    section = text.partition(f"\n## {TABLE}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The names under which a page's headings can be linked to."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead(text: str, page: Path) -> list[str]:
    """Relative links of a page to files that are not there, or to headings that those have not."""
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        name, _, anchor = link.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        if "://" not in link and not (path.exists() and (not anchor or anchor in anchors(path.read_text("utf-8")))):
            found.append(link)
    return found


def make(command: str) -> subprocess.CompletedProcess[str]:
    """Let make say what it would do."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    line = ["make", "-n", "--no-print-directory", *words(command)[1:]]
    return subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def unmakeable(command: str) -> list[str]:
    """The words of a make command that are neither a target of the Makefile nor a variable that it asks for."""
    targets = set(re.findall(r"^([\w-]+):(?!=)", MAKEFILE, re.MULTILINE))
    variables = set(re.findall(r"^(\w+) \?=", MAKEFILE, re.MULTILINE))
    found = [word.partition("=") for word in words(command)[1:]]
    return [name for name, equals, _ in found if name not in (variables if equals else targets)]


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The plans of the command lines that were run: stages and downloads are stood in for, nothing else."""
    plans: list[Plan] = []

    def run(plan: Plan) -> Result:
        plans.append(plan)
        return Result(plan.out)

    monkeypatch.setattr(reproduce, "run", run)
    monkeypatch.setattr(fetch, "wheel", lambda name: Path(fetch.find(name).name))
    return plans


def call(monkeypatch: pytest.MonkeyPatch, command: str, *more: str) -> int:
    """Run a command line in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", [*words(command), *more])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


def given(command: str, option: str) -> list[str]:
    """What follows an option of a command, each time it stands there."""
    return [after for word, after in pairwise(words(command)) if word == option]


def settings(command: str) -> list[tuple[str, str, str]]:
    """Stage number ("" for any), name and value of every ``--set`` of a command."""
    found = [text.partition("=") for text in given(command, "--set")]
    return [(*name.rpartition(".")[::2], value) for name, _, value in found]


MAKES, LINES = commands(ALL, "make"), commands(ALL, "starling-nb")
RUNS = [line for line in LINES if words(line)[1] == "reproduce"]
WHOLE = ("judge", "bias", "train-reward", "score", "serve-reward", "tune", "evaluate", "chat")
BUILDS = [line for line in LINES if words(line)[1] in ("prompts", "respond", *WHOLE)]
JUDGES = [value for line in RUNS for _, name, value in settings(line) if name == "judge"]


def test_the_readme_shows_commands_and_none_that_is_not_tested_here() -> None:
    assert {"make reproduce", "make test", "make lab"} <= set(MAKES)
    assert "starling-nb doctor" in LINES
    assert len(RUNS) >= 3
    assert strangers(ALL) == []


@pytest.mark.parametrize("page", [Path("README.md"), *PAGES, Path("ARCHITECTURE.md"), Path("CONTRIBUTING.md")], ids=str)
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    assert dead((ROOT / page).read_text(encoding="utf-8"), page) == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    assert [page for page in PAGES if f"]({page})" not in README] == []


@pytest.mark.parametrize("command", MAKES)
def test_make_knows_the_target_and_the_command_line_what_it_calls(
    command: str, planned: list[Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert unmakeable(command) == []
    done = make(command)
    assert done.returncode == 0, done.stderr
    for line in re.findall(r"^\S*/(starling-nb .+)$", done.stdout, re.MULTILINE):
        more = ["--out", str(tmp_path / "out")] if words(line)[1] == "reproduce" else []
        assert call(monkeypatch, line, *more) == 0
    profile = dict(word.split("=") for word in words(command) if "=" in word).get("PROFILE", "laptop")
    assert [plan.profile for plan in planned] == ([profile] if "reproduce" in words(command) else [])


@pytest.mark.parametrize("command", RUNS)
def test_a_run_is_planned_as_the_line_says(
    command: str,
    planned: list[Plan],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, command, "--out", str(tmp_path / "out")) == 0
    (plan,) = planned
    assert plan.profile == (given(command, "--profile") or ["laptop"])[-1]
    assert {book.number for book in plan.books} >= set(given(command, "--only") or [name[:2] for name in table(README)])
    for number, name, text in settings(command):
        values = [value[name] for stage, value in plan.parameters.items() if stage.startswith(number) and name in value]
        assert values
        assert values == [profiles.parse(name, type(values[0]), text)] * len(values)
    capsys.readouterr()
    assert call(monkeypatch, command, "--out", str(tmp_path / "out"), "--explain") == 0
    explained = [line.split(": run (")[0] for line in capsys.readouterr().out.splitlines()]
    assert explained == [book.name for book in plan.books]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", BUILDS)
def test_a_line_that_builds_a_data_set_can_be_read_and_its_recipes_too(command: str) -> None:
    name, *rest = words(command)[1:]
    context = typer.main.get_command(cli.app).commands[name].make_context(name, list(rest))  # type: ignore[attr-defined]
    recipes = [word for word in rest if word.startswith("data/")]
    for recipe in recipes:
        kind: Any = prompts.Settings if name == "prompts" else making.Responders
        assert kind.from_toml(ROOT / recipe)
    own = name == "prompts" and rest[0] == "my_prompts.jsonl"
    assert own or name in WHOLE or recipes
    assert name in ("chat", "serve-reward") or context.params["out"]


def test_the_rankings_that_are_measured_are_those_that_a_notebook_writes() -> None:
    paths = [Path(words(line)[2]) for line in BUILDS if words(line)[1] == "bias"]
    (path,) = (path for path in paths if path.parts[0] == "outputs")
    assert (profiles.FOLDER / f"{path.parts[1]}.toml").exists()
    assert path.parts[2] in table(README)
    assert path.name in (ROOT / "notebooks" / f"{path.parts[2]}.ipynb").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", [line for line in LINES if line not in RUNS + BUILDS])
def test_every_other_line_does_what_it_says(
    command: str,
    planned: list[Plan],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, command) == 0
    assert capsys.readouterr().out
    assert planned == []


def test_the_tree_names_what_is_there() -> None:
    paths = tree(README)
    assert {"notebooks/", "starling_nb/", "starling_nb/nectar/", "starling_nb/files", "data/"} <= set(paths)
    assert absent(paths) == []


def test_the_table_lists_the_notebooks() -> None:
    assert table(README) == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


def test_programs_named_in_the_prose_are_there() -> None:
    named = re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|md|ipynb))`", prose(README))
    assert [name for name in named if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("who", JUDGES)
def test_a_judge_is_the_model_and_the_server_that_the_line_names(
    who: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    for key in ("", SECRET):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with connect(who) as judge:
            assert "@".join(filter(None, (judge.model, judge.base_url))) == who
            assert judge.base_url is None or judge.base_url.startswith("http")
            assert SECRET not in repr(vars(judge))
    assert capsys.readouterr() == ("", "")


def test_the_readme_shows_a_vendor_s_judge_and_one_s_own_server() -> None:
    assert SIMULATED not in JUDGES
    assert {"@http" in who for who in JUDGES} == {True, False}


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("make test           # set up and test", ["make", "test"]),
        ("$ make lab", ["make", "lab"]),
        ("starling-nb reproduce --set a=b#c # d", ["starling-nb", "reproduce", "--set", "a=b#c"]),
        ("# a remark", []),
    ],
)
def test_prompts_and_comments_are_no_part_of_a_command(command: str, expected: list[str]) -> None:
    assert words(command) == expected


def broken(old: str, new: str) -> str:
    """The README with one thing changed."""
    assert old in README
    return README.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("03.lr=3e-4", "03.lrr=3e-4", "'lrr' is no parameter of 03"),
        ("03.lr=3e-4", "03.lr=small", "not a value of type float"),
        ("--set judge=qwen", "--set jugde=qwen", "'jugde' is no parameter"),
        ("--set 03.lr=3e-4", "--profile desktop", "profile 'desktop' is unknown"),
        ("--only 03", "--only 08", "no notebook '08'"),
        ("--only 03", "--just 03", "No such option"),
        ("starling-nb doctor", "starling-nb surgeon", "No such command"),
    ],
)
def test_a_rotten_line_is_refused(
    old: str,
    new: str,
    message: str,
    planned: list[Plan],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (command,) = set(commands(broken(old, new), "starling-nb")) - set(LINES)
    assert call(monkeypatch, command, "--out", str(tmp_path / "out")) == 2
    assert message in re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().err)
    assert planned == []


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        ("make test ", "make tests ", ["tests"]),
        ("make lab`", "make data`", ["data"]),
        ("reproduce PROFILE=smoke", "reproduce SIZE=smoke", ["SIZE"]),
    ],
)
def test_a_rotten_target_is_found(old: str, new: str, wrong: list[str]) -> None:
    (command,) = set(commands(broken(old, new), "make")) - set(MAKES)
    assert unmakeable(command) == wrong


def test_other_rot_is_found_too() -> None:
    assert strangers(broken("make test  ", "rake test  "))
    assert dead(broken("docs/bias.md", "docs/bios.md"), Path("README.md")) == ["docs/bios.md"]
    assert dead(broken("#what-differs-from-starling-lm", "#what-is-alike"), Path("README.md")) == [
        "docs/policy.md#what-is-alike"
    ]
    assert absent(tree(broken("  bias/ ", "  biases/ "))) == ["starling_nb/biases/"]
    assert absent(tree(broken("runner/, claims", "runner/, claim"))) == ["starling_nb/claim"]
    assert absent(tree(broken("\ndata/ ", "\ndatum/ "))) == ["datum/"]
    assert table(broken("| `05_evaluation` |", "| `05_scores` |"))[5] == "05_scores"
    with pytest.raises(AssertionError, match="left open"):
        fenced(README + "\n```\n")
