"""Two hundred thousand made-up prompts through duplicates and decontamination: time, memory, and what is found.

    python -m benchmarks.prompt_scale [--rows 200000]

Words follow Zipf's law, one prompt in eight shares a template with hundreds of others. Planted, with the truth known:
exact duplicates, near duplicates of every similarity (their Jaccard counted in full), prompts that hold an evaluation
item whole, and prompts that hold less than half of one. The build runs in a process of its own; another process holds
nothing but the duplicate index, to measure its bytes. Languages are not looked at: the words are of none. Where
datasketch is installed (``pip install datasketch==2.0.0``; nothing else here uses it), the two MinHash libraries are
compared: signatures, index and queries alone.
Writes ``benchmarks/results/prompt_scale.json``. Targets: 180 s on two cores for the two stages, 1 GB for the index.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks import records
from starling_nb import files
from starling_nb.nectar.prompts import Settings, build, building
from starling_nb.nectar.prompts.duplicates import DuplicateIndex, shingles
from starling_nb.nectar.prompts.settings import (
    DuplicateSettings,
    EvaluationSettings,
    FilterSettings,
    SourceSettings,
)

ITEMS = 10_000
"""Texts of the made-up evaluation set: MT-Bench, AlpacaEval and MMLU together have about so many."""
SECONDS, BYTES = 180, 10**9


class Writer:
    """Makes up texts."""

    def __init__(self, seed: int, size: int = 30_000) -> None:
        self.rng = files.rng(seed, "prompt_scale")
        parts = [a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "ar", "en", "is")]
        self.vocabulary = np.array(
            sorted({"".join(self.rng.choice(parts, self.rng.integers(1, 5))) for _ in range(size)})
        )
        self.rng.shuffle(self.vocabulary)
        self.shares = 1 / np.arange(2, len(self.vocabulary) + 2)
        self.shares /= self.shares.sum()
        self.templates = [self.words(int(self.rng.integers(12, 25))) for _ in range(100)]

    def words(self, length: int) -> list[str]:
        """Words by Zipf's law."""
        return self.rng.choice(self.vocabulary, length, p=self.shares).tolist()

    def prompt(self) -> list[str]:
        """Words of a prompt: about 55, sometimes many more, one in eight with a shared template before them."""
        length = int(np.clip(self.rng.lognormal(3.7, 0.8), 12, 1500))
        if self.rng.random() < 0.125:
            return [*self.templates[self.rng.integers(100)], *self.words(max(length, 30))]
        return self.words(length)

    def changed(self, words: list[str]) -> list[str]:
        """The same with up to an eighth of its words replaced, dropped or doubled, in one to three places."""
        out = list(words)
        for _ in range(self.rng.integers(1, 4)):
            place, size = self.rng.integers(len(out)), 1 + self.rng.integers(max(1, len(out) // 24))
            out[place : place + size] = self.words(int(self.rng.integers(0, 2 * size + 1)))
        return out


def make(folder: Path, rows: int) -> dict[str, Any]:
    """Write prompts.jsonl and items.jsonl; returns the truth: pairs to merge, pairs to leave, leaks, near leaks."""
    writer = Writer(0)
    items = [writer.words(int(writer.rng.integers(4, 60))) for _ in range(ITEMS)]
    files.write_jsonl(folder / "items.jsonl", [{"id": n, "text": " ".join(item)} for n, item in enumerate(items)])
    texts: list[str] = []
    truth: dict[str, Any] = {"exact": [], "near": [], "apart": [], "leaks": [], "parts": []}
    while len(texts) < rows:  # every item is used once at most
        words, kind = writer.prompt(), writer.rng.random()
        number = len(texts)
        if kind < 0.02:
            item = items[len(truth["leaks"])]
            extra = writer.words(int(writer.rng.integers(0, 5)) if len(item) < 8 else len(words) // 2)
            texts.append(" ".join([*extra[: len(item)], *item] if len(item) < 8 else [*extra, *item]))
            truth["leaks"].append(number)
            continue
        if kind < 0.03:
            item = items[-1 - len(truth["parts"])]
            texts.append(" ".join([*words, *item[: int(0.45 * len(item))]]))
            truth["parts"].append(number)
            continue
        texts.append(" ".join(words))
        if kind < 0.09:
            texts.append(f"{' '.join(words).upper()} ?!")
            truth["exact"].append([number, number + 1])
        elif kind < 0.20:
            texts.append(" ".join(writer.changed(words)))
            one, two = (shingles([{"role": "user", "content": text}], 3) for text in texts[-2:])
            near = len(one & two) >= 0.8 * len(one | two)
            truth["near" if near else "apart"].append([number, number + 1])
    order = writer.rng.permutation(len(texts))
    with (folder / "prompts.jsonl").open("w") as stream:
        for number in order.tolist():
            stream.write(json.dumps({"prompt": texts[number], "id": str(number), "source": str(number)}) + "\n")
    return truth | {"rows": len(texts), "characters": float(np.mean([len(text) for text in texts]))}


def settings(folder: Path) -> Settings:
    """Duplicates and decontamination as they are by default, lengths and languages let through."""
    return Settings(
        [SourceSettings("made_up", "plain", str(folder / "prompts.jsonl"))],
        filters=FilterSettings(shortest=0, language=""),
        evaluations=[EvaluationSettings("made_up_items", str(folder / "items.jsonl"))],
    )


def timed(kind: Any, name: str, spent: dict[str, float]) -> None:
    """Add the seconds of a method to ``spent``."""
    plain: Callable[..., Any] = getattr(kind, name)

    def wrapped(*args: Any) -> Any:
        began = time.perf_counter()
        try:
            return plain(*args)
        finally:
            spent[f"{kind.__name__}.{name}"] = spent.get(f"{kind.__name__}.{name}", 0) + time.perf_counter() - began

    setattr(kind, name, wrapped)


def run_build(folder: Path) -> dict[str, Any]:
    """Build here, with the time of the two stages and this process's peak memory."""
    spent: dict[str, float] = {}
    timed(building.DuplicateIndex, "add", spent)
    timed(building.EvaluationIndex, "find", spent)
    timed(building.EvaluationIndex, "add_file", spent)
    report = build(settings(folder), folder / "out.jsonl")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    found = report.as_dict()
    return {"seconds": spent, "build_seconds": found.pop("seconds"), "peak_bytes": peak, "report": found}


def run_index(folder: Path) -> dict[str, Any]:
    """Hold the duplicate index and nothing else here; the memory that it took."""
    starts: list[int] = []
    with (folder / "prompts.jsonl").open("rb") as stream, (folder / "prompts.jsonl").open("rb") as other:

        def messages(number: int) -> list[dict[str, str]]:
            other.seek(starts[number])
            return [{"role": "user", "content": json.loads(other.readline())["prompt"]}]

        index = DuplicateIndex(DuplicateSettings(), messages)
        index.add([{"role": "user", "content": "warm up"}], 0)
        before, at, new = psutil.Process().memory_info().rss, 0, 0
        for number, line in enumerate(_lines(stream)):
            starts.append(at)
            at += len(line)
            new += index.add([{"role": "user", "content": json.loads(line)["prompt"]}], number) is None
        grown = psutil.Process().memory_info().rss - before - sys.getsizeof(starts) - 32 * len(starts)
    return {"index_bytes": grown, "index_bytes_per_row": grown / new, "accounted_bytes": index.nbytes, "new": new}


def run_library(folder: Path, name: str) -> dict[str, float]:
    """One MinHash library on all prompts: seconds and memory of signing, asking and adding, with the same bands."""
    asked, texts = DuplicateSettings(), (json.loads(line)["prompt"] for line in (folder / "prompts.jsonl").open())
    hashes, hits, rows = asked.bands * asked.band_rows, 0, 0
    if name == "rensa":
        from rensa import RMinHash, RMinHashLSH

        index: Any = RMinHashLSH(asked.threshold, hashes, asked.bands)
    else:
        from datasketch import MinHash, MinHashLSH

        index = MinHashLSH(num_perm=hashes, params=(asked.bands, asked.band_rows))
    before, began, making = psutil.Process().memory_info().rss, time.perf_counter(), 0.0
    for number, text in enumerate(texts):
        start = time.perf_counter()
        grams = list(shingles([{"role": "user", "content": text}], asked.words))
        making += time.perf_counter() - start
        if name == "rensa":
            minhash: Any = RMinHash(hashes, 1)
            minhash.update(grams)
        else:
            minhash = MinHash(num_perm=hashes, seed=1)
            minhash.update_batch([gram.encode() for gram in grams])
        hits, rows = hits + bool(index.query(minhash)), number + 1
        index.insert(number, minhash)
    grown, spent = psutil.Process().memory_info().rss - before, time.perf_counter() - began - making
    return {"seconds": spent, "bytes_per_row": grown / rows, "rows_with_candidates": hits}


def _lines(stream: Any) -> Iterator[bytes]:
    while line := stream.readline():
        yield line


def judge(folder: Path, truth: dict[str, Any]) -> dict[str, Any]:
    """Precision and recall against what was planted."""
    removed = {int(row["given_id"]) for row in files.read_jsonl(folder / "out.jsonl.contaminated.jsonl")}
    merged = set()
    for row in files.read_jsonl(folder / "out.jsonl"):
        together = sorted(map(int, row["source"]))
        merged |= {(one, two) for place, one in enumerate(together) for two in together[place + 1 :]}
    exact, near = ({tuple(pair) for pair in truth[kind]} for kind in ("exact", "near"))
    return {
        "planted": {kind: len(truth[kind]) for kind in ("exact", "near", "apart", "leaks", "parts")},
        "exact_recall": len(exact & merged) / len(exact),
        "near_recall": len(near & merged) / len(near),
        "merge_precision": len((exact | near) & merged) / max(1, len(merged)),
        "contamination_recall": len(removed & set(truth["leaks"])) / len(truth["leaks"]),
        "contamination_precision": len(removed & set(truth["leaks"])) / max(1, len(removed)),
    }


def main() -> None:
    """Make the prompts, run both processes, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--here", nargs=2, metavar=("KIND", "FOLDER"), help="run one part and print its figures")
    asked = parser.parse_args()
    if asked.here:
        kind, folder = asked.here
        run: Any = {"build": run_build, "index": run_index}.get(kind)
        print(json.dumps(run(Path(folder)) if run else run_library(Path(folder), kind)))
        return
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        truth = make(folder, asked.rows)
        found |= {"rows": truth["rows"], "characters_per_prompt": truth["characters"]}
        kinds = ["build", "index"]
        if importlib.util.find_spec("datasketch"):
            kinds += ["rensa", "datasketch"]
        for kind in kinds:
            line = [sys.executable, "-m", "benchmarks.prompt_scale", "--here", kind, name]
            done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True, cwd=files.ROOT)
            found[kind] = json.loads(done.stdout.splitlines()[-1])
        found["found"] = judge(folder, truth)
    both = sum(found["build"]["seconds"].values())
    found["seconds_of_both"], found["targets"] = both, {"seconds": SECONDS, "index_bytes": BYTES}
    found["targets_hold"] = both <= SECONDS and found["index"]["index_bytes"] <= BYTES
    print(json.dumps(found, indent=1))
    records.keep("prompt_scale.json", found)


if __name__ == "__main__":
    main()
