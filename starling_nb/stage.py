"""What a notebook sees of the run it belongs to: its parameters, its folders, and where its results go.

The third cell of every notebook says ``stage = starling_nb.enter("03_reward_training", globals())`` and the
last one ``stage.leave()``. The same notebook works under ``starling-nb reproduce``, under plain papermill and
in JupyterLab; only the runner makes a finished stage that is skipped next time.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from starling_nb import claims, files, profiles
from starling_nb.errors import StarlingError
from starling_nb.runner import by_hand, keys, manifest, notebook

ENVIRONMENT = "STARLING_NB_STAGE"
NOTEBOOKS = files.ROOT / "notebooks"

_ID = re.compile(r"[a-z0-9_]+(\.[a-z0-9_@<>=+-]+)*", re.IGNORECASE)
_NAME = re.compile(r"[a-z0-9_]+")


T = TypeVar("T")


@runtime_checkable
class Estimate(Protocol):
    """A value with its interval, such as :class:`starling_nb.stats.Interval`."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def n(self) -> int: ...


Four = tuple[float, float | None, float | None, int | None]


def _four(value: float | Estimate, low: float | None, high: float | None, n: int | None) -> Four:
    if isinstance(value, Estimate):
        return _four(value.value, value.low, value.high, value.n)
    low, high = (None if end is None or math.isnan(end) else end for end in (low, high))
    return float(value), low, high, n


class StageError(StarlingError):
    """A notebook asked its stage for something it cannot have."""


def enter(name: str, namespace: Mapping[str, Any]) -> Stage:
    """Enter the stage ``name`` from its notebook; ``namespace`` is the notebook's ``globals()``.

    Parameters come from the runner where there is one. Otherwise a value that papermill injected or that was
    edited in the cell wins, and every other one comes from the profile (``STARLING_NB_PROFILE`` or parameter
    ``profile``).

    Raises:
        StageError: the runner runs another stage, or the stage is unknown.
        ParameterError: a parameter is unknown or ill-typed.
    """
    claims.clear()
    given = os.environ.get(ENVIRONMENT)
    if given:
        context = json.loads(given)
        if context["name"] != name:
            raise StageError(f"this notebook enters {name!r}, the runner runs {context['name']!r}: mend one name")
        values = context["parameters"]
        return Stage(name, _frozen(name, values), Path(context["out"]), tuple(context["needs"]), key=context["key"])
    values = by_hand.parameters(name, namespace)
    path = NOTEBOOKS / f"{name}.ipynb"
    book = notebook.read(path) if path.exists() else None
    out = keys.resolve(values["out"] or f"outputs/{values['profile']}")
    if isinstance(namespace, dict):
        namespace.update(values)
    return Stage(name, profiles.make(name, values), out, book.needs if book else (), book=book)


def _frozen(name: str, values: Mapping[str, Any]) -> Any:
    if name in profiles.STAGES:
        return profiles.make(name, values)
    return dataclasses.make_dataclass("Parameters", [(key, type(value)) for key, value in values.items()], frozen=True)(
        **values
    )


class Stage:
    """A stage that is being run.

    Attributes:
        p: the resolved parameters, frozen (``stage.p.seed``).
        out: folder of the run; ``dir``: the stage's own folder in it.
        resumed_step: set by a notebook that went on from a checkpoint; goes into the manifest.
    """

    def __init__(
        self,
        name: str,
        p: Any,
        out: Path,
        needs: tuple[str, ...],
        key: str = "",
        book: notebook.Notebook | None = None,
    ) -> None:
        self.name, self.number, self.p, self.out, self.needs = name, name[:2], p, out, needs
        self.dir = out / name
        self.resumed_step: int | None = None
        self._given_key, self._book = key, book
        self._metrics: dict[str, dict[str, Any]] = {}
        self._captions: dict[str, str] = {}
        self._inputs: set[str] = set()
        try:
            self.dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StageError(f"cannot make {self.dir} ({error.strerror}): choose another folder with `out`") from error

    def __repr__(self) -> str:
        return f"stage {self.name}, profile {self.p.profile}"

    @cached_property
    def key(self) -> str:
        """The stage key. By hand it is computed when first asked for, after the inputs have been made."""
        if self._given_key or self._book is None:
            return self._given_key or f"{self.name}-{files.hash_value(dataclasses.asdict(self.p))[:16]}"
        inputs = {need: keys.handed_over(need, keys.outputs(self.out, need)) for need in self.needs}
        parts = keys.components(self._book, dataclasses.asdict(self.p), inputs, keys.data_hash())
        return keys.key_of(self.name, parts)

    @cached_property
    def checkpoints(self) -> Path:
        """Folder for half-done work, kept for the next try with the same key, removed when it is done."""
        path = self.out / ".checkpoints" / self.key
        path.mkdir(parents=True, exist_ok=True)
        return path

    def input(self, stage: str, file: str) -> Path:
        """A file or folder that an earlier stage wrote.

        Without a runner, a stage that has not been run is run now.

        Raises:
            StageError: the notebook's metadata does not say that it needs the stage, or the file was not
            written.
        """
        if stage not in self.needs and (self._given_key or self._book):
            raise StageError(f"{self.name} reads {stage} unannounced: add it to `starling_nb.needs` in its metadata")
        path = self.out / stage / file
        if not (self.out / stage / "stage.json").exists():
            missing = f"{stage} has not been run in {manifest.shown(self.out)} ({manifest.usual_time(stage)})"
            if self._given_key:
                raise StageError(f"{missing}: run `starling-nb reproduce --only {stage[:2]}`")
            print(f"{missing}: running it now")
            by_hand.build(stage, self.name, self.p, self.out)
        if not path.exists():
            raise StageError(f"{stage} finished without {file}: run `starling-nb reproduce --only {stage[:2]} --force`")
        self._inputs.add(f"{stage}/{file}")
        return path

    def data(self, name: str) -> Path:
        """A file of the project's ``data/`` folder.

        Raises:
            StageError: there is no such file.
        """
        path = files.DATA / name
        if not path.exists():
            raise StageError(f"data/{name} is missing: restore it (git checkout data)")
        self._inputs.add(f"data/{name}")
        return path

    def real(self, name: str) -> Path | None:
        """The path that the parameter ``name`` (``real_…``, ``recorded_…``) gives, or None where it is empty.

        Raises:
            ParameterError: the path does not exist.
        """
        value = getattr(self.p, name)
        return keys.existing(name, value) if value else None

    def settings(self, cls: type[T]) -> T:
        """An object of the dataclass ``cls`` with every field that is also a parameter of this stage."""
        shared = {field.name for field in dataclasses.fields(cls)} & {f.name for f in dataclasses.fields(self.p)}  # type: ignore[arg-type]
        return cls(**{name: getattr(self.p, name) for name in shared})

    def record(
        self,
        id: str,
        value: float | Estimate,
        low: float | None = None,
        high: float | None = None,
        n: int | None = None,
    ) -> None:
        """Keep a measured number for ``metrics.json``, under ``<number>.<id>``; ``low`` and ``high`` bound
        its interval. An object with these four attributes may stand for all of them.

        Raises:
            StageError: the id is ill-formed or a number is not finite.
        """
        value, low, high, n = _four(value, low, high, n)
        numbers = {"value": value, "low": low, "high": high}
        row: dict[str, Any] = {key: None if number is None else float(number) for key, number in numbers.items()}
        if any(number is not None and not math.isfinite(number) for number in row.values()):
            raise StageError(f"metric {id}: {row} is not finite; look at what was measured")
        self._metrics[self._id(id)] = {**row, "n": None if n is None else int(n)}

    def record_rows(self, table: Any, *names: str) -> None:
        """Record every row of a DataFrame with value, low, high, n; words of the columns ``names`` make up its id."""
        for row in table.to_dict("records"):
            id = ".".join("_".join(re.findall(r"[\w=.×-]+", str(row[name]))) for name in names)
            self.record(id, *(row[column] for column in ("value", "low", "high", "n")))

    def claim(
        self,
        id: str,
        value: float | Estimate,
        low: float | None = None,
        high: float | None = None,
        n: int | None = None,
        rule: str = ">0",
        text: str = "",
        min_n: int = 0,
    ) -> None:
        """Judge a claim (:mod:`starling_nb.claims`), print it, keep it as ``claim.<number>.<id>``.

        Returns nothing, so that a cell that ends with a claim shows it once.
        """
        value, low, high, n = _four(value, low, high, n)
        claim = claims.record(self._id(id), value, low, high, n, rule, text, min_n)
        interval = "" if low is None or high is None else f" [{low:.4g}, {high:.4g}]"
        size = "" if n is None else f", n = {n:,}"
        print(f"{claim.verdict:>9} | {text or id}: {value:.4g}{interval}{size} ({rule})")

    def _id(self, id: str) -> str:
        plain = id.removeprefix(f"{self.number}.")
        if not _ID.fullmatch(plain):
            raise StageError(f"{id!r} is no good id: write words of letters, digits and _ with dots between them")
        return f"{self.number}.{plain}"

    def figure(self, fig: Any, name: str, caption: str) -> Any:
        """Save a figure as ``figures/<number>_<name>.png``, with its caption beside it, and return it."""
        from starling_nb import plots  # draws; only where a figure is saved

        path = self._place("figures", name, ".png", caption)
        plots.save(fig, path, {"stage": self.name, "key": self.key, "caption": caption})
        files.write_text(path.with_suffix(".txt"), caption + "\n")
        fig.caption = caption
        return fig

    def table(self, df: Any, name: str, caption: str) -> Any:
        """Save a DataFrame as ``tables/<number>_<name>.csv``, with its caption beside it, and return it."""
        path = self._place("tables", name, ".csv", caption)
        named = df.index.inferred_type == "string"  # rows that have names, and not just numbers
        files.write_text(path, df.to_csv(index=named))
        files.write_text(path.with_suffix(".txt"), caption + "\n")
        return df

    def _place(self, kind: str, name: str, suffix: str, caption: str) -> Path:
        if not _NAME.fullmatch(name):
            raise StageError(f"{name!r} is no good name for a file: use small letters, digits and _")
        path = self.out / kind / f"{self.number}_{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._captions[path.relative_to(self.out).as_posix()] = caption
        return path

    def leave(self) -> None:
        """Write ``metrics.json`` (with the claims) and ``stage.json`` into the stage's folder."""
        own = [claim for claim in claims.recorded() if claim.id.startswith(f"{self.number}.")]
        metrics = self._metrics | {f"claim.{claim.id}": claim.row() for claim in own}
        files.write_json(self.dir / "metrics.json", metrics)
        note = {
            "name": self.name,
            "key": self.key,
            "profile": self.p.profile,
            "inputs": sorted(self._inputs),
            "captions": self._captions,
            "resumed_step": self.resumed_step,
        }
        files.write_json(self.dir / "stage.json", note)
        counts = [f"{sum(claim.verdict == verdict for claim in own)} {word}" for verdict, word in _VERDICTS]
        print(f"{self.name}: {len(self._metrics)} metrics; {len(own)} claims: {', '.join(counts)}")


_VERDICTS = (("holds", "hold"), ("fails", "fail"), ("too small", "too small to tell"))
