from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from evaluation import small

from starling_nb.evaluation import EvaluationError, mmlu
from starling_nb.evaluation.mmlu import Question
from starling_nb.models import LM

WORDS = ["which", "of", "these", "is", "the", "largest", "oldest", "river", "star", "city", "law", "number"]


def made(n: int, subject: str, seed: int) -> list[Question]:
    generator = np.random.default_rng(seed)

    def text(k: int) -> str:
        return " ".join(generator.choice(WORDS, k))

    return [
        Question(f"{subject}{seed}-{i}", subject, text(int(generator.integers(3, 12))) + "?",
                 tuple(text(2) for _ in range(4)), int(generator.integers(4)))
        for i in range(n)
    ]  # fmt: skip


EXAMPLES = made(5, "river_law", 1) + made(5, "stars", 2)
ASKED = made(6, "stars", 3) + made(5, "river_law", 4) + made(1, "stars", 5)


@pytest.fixture(scope="module")
def lm() -> LM:
    return small.lm([mmlu.prompt(question, EXAMPLES) for question in ASKED])


def scores(margins: list[float], correct: list[bool] | None = None) -> pd.DataFrame:
    right = correct if correct is not None else [margin > 0 for margin in margins]
    return pd.DataFrame({"id": [str(n) for n in range(len(margins))], "correct": right, "mean_margin": margins})


def test_embedded_questions_have_five_solved_examples_a_subject() -> None:
    questions, examples = mmlu.load(), mmlu.load_dev()
    assert len(questions) == 264
    counts = pd.Series([example.subject for example in examples]).value_counts()
    assert set(counts) == {5}
    assert set(counts.index) == {question.subject for question in questions}


def test_the_prompt_is_the_published_form() -> None:
    example = Question("e", "high_school_law", "Is it so?", ("yes", "no", "maybe", "never"), 1)
    question = Question("q", "high_school_law", "Is it not?", ("a", "b", "c", "d"), 0)
    assert mmlu.prompt(question, [example]) == (
        "The following are multiple choice questions (with answers) about high school law.\n\n"
        "Is it so?\nA. yes\nB. no\nC. maybe\nD. never\nAnswer: B\n\n"
        "Is it not?\nA. a\nB. b\nC. c\nD. d\nAnswer:"
    )


def test_letters_are_accepted_as_answers_and_bad_rows_refused(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    row = {"id": "1", "subject": "s", "question": "q", "choices": ["a", "b", "c", "d"], "answer": "C"}
    path.write_text(json.dumps(row))
    assert mmlu.load(path)[0].answer == 2
    for bad in ({"choices": ["a"]}, {"answer": 4}, {"answer": "E"}, {"answer": None}):
        path.write_text(json.dumps(row | bad))
        with pytest.raises(EvaluationError):
            mmlu.load(path)


@pytest.mark.parametrize("shots", [0, 2, 5])
def test_margins_equal_those_of_the_full_distribution(lm: LM, shots: int) -> None:
    found = mmlu.score(lm, ASKED, EXAMPLES, shots=shots)
    assert found["id"].tolist() == [question.id for question in ASKED]
    tokenizer = lm.chat.tokenizer
    letters = [tokenizer(f" {letter}")["input_ids"][0] for letter in "ABCD"]
    for question, row in zip(ASKED, found.itertuples(), strict=True):
        same = [example for example in EXAMPLES if example.subject == question.subject][:shots]
        ids = tokenizer(mmlu.prompt(question, same))["input_ids"]
        assert 0 not in ids  # no unknown words: the prompts do differ
        logp = lm.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[letters].tolist()
        mine = logp.pop(question.answer)
        assert row.margin == pytest.approx(mine - max(logp), abs=1e-4)
        assert row.mean_margin == pytest.approx(mine - sum(logp) / 3, abs=1e-4)
        assert row.correct == (mine > max(logp))
        assert (row.choice == "ABCD"[question.answer]) == row.correct


def test_reusing_the_prefix_and_batching_change_nothing(lm: LM) -> None:
    plain = mmlu.score(lm, ASKED, EXAMPLES, batch=1, reuse=False)
    calls: list[tuple[int, int]] = []
    for batch in (1, 3, 32):
        reused = mmlu.score(lm, ASKED, EXAMPLES, batch=batch, progress=lambda done, n: calls.append((done, n)))
        pd.testing.assert_frame_equal(reused, plain, atol=1e-4, rtol=0)
    assert calls[-1] == (len(ASKED), len(ASKED))
    assert plain["margin"].std() > 0.1  # the model is not indifferent


def test_the_shared_prefix_is_run_once_a_subject(lm: LM) -> None:
    lengths: list[int] = []
    hook = lm.model.model.embed_tokens.register_forward_hook(lambda _, args, out: lengths.append(out[..., 0].numel()))
    try:
        mmlu.score(lm, ASKED, EXAMPLES)
        reused = sum(lengths)
        lengths.clear()
        mmlu.score(lm, ASKED, EXAMPLES, reuse=False)
    finally:
        hook.remove()
    assert reused < 0.5 * sum(lengths)


def test_too_few_examples_and_split_letters_are_refused(lm: LM) -> None:
    with pytest.raises(EvaluationError, match="lower shots"):
        mmlu.score(lm, ASKED, EXAMPLES, shots=6)
    blind = small.lm(["no letters here"])
    blind.chat.tokenizer.backend_tokenizer.pre_tokenizer = small.pre_tokenizers.Split("", "isolated")
    with pytest.raises(EvaluationError, match="tokenizer"):
        mmlu.score(blind, ASKED[:1], EXAMPLES)


def test_a_question_is_never_its_own_example(lm: LM) -> None:
    with pytest.raises(EvaluationError, match="has 4 examples"):
        mmlu.score(lm, EXAMPLES[:1], EXAMPLES)


def test_no_loss_holds_and_a_real_loss_fails() -> None:
    generator = np.random.default_rng(0)
    start = generator.normal(0.6, 1.0, 300)
    before = scores(start.tolist())
    same = mmlu.compare(before, scores((start + generator.normal(0, 0.2, 300)).tolist()), margin=0.1)
    worse = mmlu.compare(before, scores((start - 0.3 + generator.normal(0, 0.2, 300)).tolist()), margin=0.1)
    assert same.verdict == "holds"
    assert same.difference.low > -0.1
    assert worse.verdict == "fails"
    assert worse.difference.value == pytest.approx(-0.3, abs=0.05)
    assert worse.accuracy_after.value < worse.accuracy_before.value
    assert same.detectable == pytest.approx(2.8 * 0.2 / 300**0.5, rel=0.15)
    assert same.chance_p < 1e-6


def test_too_few_questions_to_exclude_the_loss_is_no_proof() -> None:
    start = [1.0, 0.5, 2.0, 1.5, 0.3, 0.9, 1.1, 0.7]
    noisy = [0.2, 1.4, 1.2, 2.5, -0.4, 1.9, 0.3, 1.3]
    assert mmlu.compare(scores(start), scores(noisy), margin=0.1).verdict == "fails"


def test_a_start_that_guesses_is_not_testable() -> None:
    start = [1.0 if n % 4 == 0 else -1.0 for n in range(100)]
    result = mmlu.compare(scores(start), scores(start), margin=0.1)
    assert result.verdict == "floor: not testable"
    assert result.chance_p > 0.05


def test_comparison_pairs_by_id_and_refuses_different_sets() -> None:
    before, after = scores([1.0, -0.2, 3.0]), scores([1.5, 0.3, 3.5])
    shuffled = after.iloc[[2, 0, 1]]
    result = mmlu.compare(before, shuffled)
    assert result.difference.value == pytest.approx(0.5)
    assert result.accuracy_change.value == pytest.approx(1 / 3)
    for other, margin in ((scores([1.0, 2.0]), 0.1), (after, 0.0)):
        with pytest.raises(EvaluationError):
            mmlu.compare(before, other, margin)
