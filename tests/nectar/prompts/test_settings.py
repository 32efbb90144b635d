"""Settings are read from TOML; a wrong name, type or value is one message that says where."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from starling_nb.errors import StarlingError
from starling_nb.nectar.prompts import Settings, settings

WHOLE = """
seed = 3
rows = 100
own_evaluations = false
[[sources]]
name = "lmsys-chat-1m"
weight = 2
[[sources]]
name = "forum"
like = "plain"
path = "forum.jsonl"
count = 5
whole = true
[filters]
shortest = 10
[duplicates]
threshold = 0.9
[decontamination]
words = 13
[[evaluations]]
name = "mt_bench"
path = "sets/question.jsonl"
columns = ["turns"]
"""


def read(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    return Settings.from_toml(path)


def test_a_file_gives_settings_with_paths_beside_it(tmp_path: Path) -> None:
    found = read(tmp_path, WHOLE)
    assert found == Settings(
        [
            settings.SourceSettings("lmsys-chat-1m", weight=2.0),
            settings.SourceSettings("forum", "plain", str(tmp_path / "forum.jsonl"), count=5, whole=True),
        ],
        100,
        3,
        settings.FilterSettings(10),
        settings.DuplicateSettings(threshold=0.9),
        settings.DecontaminationSettings(13),
        [settings.EvaluationSettings("mt_bench", str(tmp_path / "sets/question.jsonl"), ["turns"])],
        False,
    )


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seed = 3", "seeds = 3", r"settings.toml has an unknown name seeds: choose from sources, rows"),
        ("seed = 3", 'seed = "3"', r"settings.toml: seed = '3' is a str; it has to be int"),
        ("shortest = 10", "shortest = true", "filters: shortest = True is a bool"),
        ("shortest = 10", "shortest = -1", "at least 0"),
        ("threshold = 0.9", "threshold = 90", r"has to lie in \(0, 1\]"),
        ('columns = ["turns"]', "columns = [1]", r"columns\[0\] = 1 is a int"),
        ('path = "sets/question.jsonl"', "", "lacks path"),
        ('name = "forum"', "", r"sources\[1\] lacks name"),
        ('name = "forum"', 'name = "lmsys-chat-1m"', "different names"),
        ("count = 5", "count = 5\nweight = 1.0", "not both"),
        ("count = 5", "", "give every source a weight or a count"),
        ("count = 5", "count = 500", "less than the counts"),
        ("[filters]", "[filters", "not a TOML file"),
        ("[filters]\nshortest = 10", "", ""),
    ],
)
def test_a_wrong_name_type_or_value_is_one_message(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in WHOLE
    if not said:
        assert read(tmp_path, WHOLE.replace(old, new)).filters == settings.FilterSettings()
        return
    with pytest.raises(StarlingError, match=said):
        read(tmp_path, WHOLE.replace(old, new))


def test_a_file_that_is_not_there_or_names_no_source_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(StarlingError, match="mend the path"):
        Settings.from_toml(tmp_path / "absent.toml")
    with pytest.raises(StarlingError, match="lacks sources"):
        read(tmp_path, "seed = 1")
    with pytest.raises(StarlingError, match="has to be a table"):
        read(tmp_path, "sources = [1]")


def test_every_setting_has_its_help() -> None:
    for kind in ast.parse(inspect.getsource(settings)).body:
        if isinstance(kind, ast.ClassDef):
            body = kind.body
            for place, node in enumerate(body):
                if isinstance(node, ast.AnnAssign):
                    after = body[place + 1]
                    assert isinstance(after, ast.Expr), ast.unparse(node)
                    assert isinstance(after.value, ast.Constant), ast.unparse(node)
