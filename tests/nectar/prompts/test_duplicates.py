"""Equal prompts are found, nearly equal ones too, and different ones are left alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from starling_nb import files
from starling_nb.chat import Message
from starling_nb.nectar import prompts
from starling_nb.nectar.prompts.duplicates import DuplicateIndex, exact_key, shingles
from starling_nb.nectar.prompts.settings import DuplicateSettings

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def added(texts: list[str], **settings: object) -> tuple[list[int | None], DuplicateIndex]:
    """What each text repeats."""
    index = DuplicateIndex(DuplicateSettings(**settings), lambda number: user(texts[number]))  # type: ignore[arg-type]
    found = [index.add(user(text), number) for number, text in enumerate(texts)]
    return [repeat.number if repeat else None for repeat in found], index


def sentence(seed: int, length: int = 40) -> list[str]:
    """Words of a made-up language."""
    return [word(number) for number in files.rng(seed, "sentence").integers(0, 5000, length)]


def word(number: int) -> str:
    """A word without digits."""
    return "".join("abcdefghij"[int(digit)] for digit in str(number))


@given(TEXTS)
def test_keys_see_letters_and_digits_only(text: str) -> None:
    letters = "".join(filter(str.isalnum, text.lower()))
    assert (exact_key(user(text)) == exact_key(user(letters))) or not letters
    assert exact_key(user(text)) == exact_key(user(f"  {text.lower()}\t "))
    assert exact_key(user(text)) != exact_key(user(f"{text}z"))
    assert exact_key(user(text)) != exact_key([*user(text), {"role": "assistant", "content": "x"}, *user("y")])


@given(TEXTS, TEXTS)
def test_conversations_of_one_name_have_one_key(first: str, second: str) -> None:
    """So that ids are unique among rows that are no duplicates."""
    if prompts.key(user(first)) == prompts.key(user(second)):
        assert exact_key(user(first)) == exact_key(user(second))


def test_exact_duplicates_are_found_and_signs_stay_apart() -> None:
    found, index = added(["Why, oh why?", "why oh WHY", "???", ":-)", "???", "How?"])
    assert found == [None, 0, None, None, 2, None]
    assert (index.exact, index.near) == (2, 0)


def test_a_near_duplicate_is_found_and_others_are_not() -> None:
    first, other = sentence(1), sentence(2)
    changed, half = list(first), first[:20] + other[20:]
    changed[20] = "new"
    texts = [" ".join(words) for words in (first, other, changed, half, changed)]
    found, index = added(texts)
    assert found == [None, None, 0, None, 0]
    assert (index.exact, index.near) == (0, 2)
    assert added(texts, near=False)[0] == [None, None, None, None, 2]


def test_what_is_merged_has_the_similarity_asked_for_and_little_is_missed() -> None:
    """400 pairs of every similarity against all pairs compared in full."""
    rng = files.rng(0, "pairs")
    texts = []
    for pair in range(400):
        words = sentence(pair, 60)
        texts.append(" ".join(words))
        for place in rng.integers(0, 60, pair % 6):
            words[place] = "x" + word(rng.integers(10**6))
        texts.append(" ".join(words))
    found, _ = added(texts)
    wanted = hits = 0
    for number in range(0, len(texts), 2):
        one, two = shingles(user(texts[number]), 3), shingles(user(texts[number + 1]), 3)
        near = len(one & two) / len(one | two) >= 0.8
        assert found[number] is None
        assert found[number + 1] in ((number, None) if near else (None,))
        wanted, hits = wanted + near, hits + (found[number + 1] == number)
    assert wanted > 100
    assert hits >= 0.98 * wanted


def test_one_word_makes_a_short_question_another() -> None:
    texts = ["What is the capital of France and how many people live there?"]
    texts.append(texts[0].replace("France", "Spain"))
    assert added(texts)[0] == [None, None]


def test_another_number_makes_a_sum_another() -> None:
    told = " ".join([*sentence(1), "and then 12 apples and 7 pears were left"])
    assert added([told, told.replace("12", "15"), told.replace("and then", "then")])[0] == [None, None, 0]


def test_our_prompts_are_no_duplicates_of_each_other() -> None:
    found = prompts.load()
    index = DuplicateIndex(DuplicateSettings(), lambda number: found[number].messages)
    assert [index.add(prompt.messages, number) for number, prompt in enumerate(found)] == [None] * len(found)


def test_the_index_is_small_and_grows_past_its_first_block() -> None:
    texts = [" ".join(sentence(number, 8)) for number in range(3000)]
    found, index = added([*texts, texts[2500]])
    assert found[:-1] == [None] * 3000
    assert found[-1] == 2500
    assert index.nbytes / 3000 < 5000
    assert index._digests.dtype == np.uint32
