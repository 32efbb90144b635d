"""Conversations become ids in one place: golden texts and ids, refusals, and Nectar's text there and back."""

from __future__ import annotations

import string
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import toy
from starling_nb import chat
from starling_nb.chat import ChatError, ChatFormat

TWO_TURNS = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "How are you today?"},
]
CORPUS = [
    "Hello Hi, how can I help you? GPT4 Correct User: Assistant: [INST] [/INST] It's good. How are you today?"
] * 3
SPECIAL = ["<unk>", "<s>", "</s>", "<|end_of_turn|>"]


def wrapped(plain: Tokenizer, closing: str = "") -> PreTrainedTokenizerFast:
    """A tokenizer that puts one BOS before whatever it is asked to close with nothing (or ``closing``)."""
    ids = [(token, plain.token_to_id(token)) for token in ("<s>", "</s>")]
    plain.post_processor = processors.TemplateProcessing(single=f"<s> $A {closing}".strip(), special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<|end_of_turn|>"],
    )


def sentencepiece(closing: str = "") -> PreTrainedTokenizerFast:
    """A tokenizer as Llama's and Mistral's: a space is put before every stretch of text."""
    plain = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    plain.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    plain.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    plain.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=140, special_tokens=SPECIAL, initial_alphabet=[*string.printable], show_progress=False
    )
    plain.train_from_iterator(CORPUS, trainer)
    return wrapped(plain, closing)


def bytes_bpe() -> PreTrainedTokenizerFast:
    """A tokenizer as GPT-2's and Qwen's: a space belongs to the word after it."""
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    plain.train_from_iterator(CORPUS, trainer)
    return wrapped(plain)


def card_tokenizer() -> PreTrainedTokenizerFast:
    """The few pieces of OpenChat-3.5's vocabulary that its model card prints golden ids for."""
    pieces = ["▁G", "PT", "4", "▁Cor", "rect", "▁User", ":", "▁Hello", "▁Assistant", "▁Hi"]
    pieces += ["▁How", "▁are", "▁you", "▁today", "?", "▁"]
    ids = [420, 6316, 28781, 3198, 3123, 1247, 28747, 22557, 21631, 15359, 1602, 460, 368, 3154, 28804, 28705]
    special = {"<unk>": 0, "<s>": 1, "</s>": 2, "<|end_of_turn|>": 32000}
    plain = Tokenizer(models.WordLevel(dict(zip(pieces, ids, strict=True)) | special, unk_token="<unk>"))
    plain.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    pattern = "|".join(piece.replace("?", r"\?") for piece in pieces)
    plain.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    return wrapped(plain)


def test_openchat_text_has_no_space_after_the_last_colon() -> None:
    assert chat.openchat_text(TWO_TURNS) == (
        "GPT4 Correct User: Hello<|end_of_turn|>GPT4 Correct Assistant: Hi<|end_of_turn|>"
        "GPT4 Correct User: How are you today?<|end_of_turn|>GPT4 Correct Assistant:"
    )
    system = [{"role": "system", "content": "Be kind."}, *TWO_TURNS]
    assert chat.openchat_text(system) == "Be kind.<|end_of_turn|>" + chat.openchat_text(TWO_TURNS)


def test_openchat_ids_are_those_of_the_model_card() -> None:
    form = ChatFormat(card_tokenizer(), "openchat")
    golden = [1, 420, 6316, 28781, 3198, 3123, 1247, 28747, 22557, 32000, 420, 6316, 28781, 3198, 3123, 21631, 28747]
    more = [420, 6316, 28781, 3198, 3123, 1247, 28747, 1602, 460, 368, 3154, 28804, 32000]
    assert form.prompt_ids(TWO_TURNS[:1]) == golden
    assert form.encode(TWO_TURNS[:1], "Hi").ids == [*golden, 15359, 32000]
    assert form.prompt_ids(TWO_TURNS) == [*golden, 15359, 32000, *more, 420, 6316, 28781, 3198, 3123, 21631, 28747]


def test_a_class_stands_before_every_role_of_an_openchat_text() -> None:
    words = bytes_bpe()
    form = ChatFormat(words, "openchat", "GPT3")
    text = "GPT3 User: Hello<|end_of_turn|>GPT3 Assistant: Hi<|end_of_turn|>GPT3 User: How are you today?"
    assert chat.openchat_text(TWO_TURNS, "GPT3") == text + "<|end_of_turn|>GPT3 Assistant:"
    assert form.prompt_ids(TWO_TURNS) == words(text + "<|end_of_turn|>GPT3 Assistant:")["input_ids"]
    assert form.encode(TWO_TURNS, "Fine.").ids[-1] == form.eos_id
    plain = ChatFormat(card_tokenizer(), "openchat")
    assert plain.condition == "GPT4 Correct"
    assert plain.conditioned("GPT4 Correct").prompt_ids(TWO_TURNS) == plain.prompt_ids(TWO_TURNS)
    assert plain.writes_like(plain.conditioned("GPT4 Correct"))
    assert not plain.writes_like(plain.conditioned("GPT3"))
    own, other = toy.tokenizer(), toy.tokenizer()
    assert ChatFormat(own).writes_like(ChatFormat(other))
    other.chat_template = "{% for m in messages %}" + own.chat_template + "{% endfor %}"
    assert not ChatFormat(own).writes_like(ChatFormat(other))
    assert form.conditioned("").prompt_ids(TWO_TURNS) == ChatFormat(words, "openchat").prompt_ids(TWO_TURNS)


@pytest.mark.parametrize("template", ["own", "llama2"])
@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be kind."}]])
def test_elsewhere_a_class_is_a_paragraph_before_the_first_message(template: str, system: list[chat.Message]) -> None:
    if system and template == "llama2":
        return  # it has no system turn
    form = ChatFormat(toy.tokenizer(), template, " Do well. ")
    first, *rest = [*system, *TWO_TURNS]
    due = [{**first, "content": f"Do well.\n\n{first['content']}"}, *rest]
    assert form.prompt_ids([first, *rest]) == form.conditioned("").prompt_ids(due)
    assert form.encode([first, *rest], "x").ids == form.conditioned("").encode(due, "x").ids
    assert not form.writes_like(form.conditioned(""))
    assert ChatFormat(toy.tokenizer(), template).prompt_ids([first, *rest]) == form.conditioned("").prompt_ids(
        [first, *rest]
    )
    with pytest.raises(ChatError, match="control token"):
        form.conditioned("</s>")


def test_llama2_text_is_what_the_released_converter_writes() -> None:
    text = chat.llama2_text(TWO_TURNS) + " It's good.</s>"
    assert text == "[INST] Hello [/INST] Hi</s> [INST] How are you today? [/INST] It's good.</s>"


@pytest.mark.parametrize("make", [sentencepiece, bytes_bpe])
@pytest.mark.parametrize("answer", ["Hi, how can I help you?", "[1, 2]", "x", "  two spaces", ""])
def test_yi_text_is_chatml_and_the_answer_has_the_ids_of_the_whole_text(
    make: Callable[[], PreTrainedTokenizerFast], answer: str
) -> None:
    words = make()
    words.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    form = ChatFormat(words, "yi")
    text = chat.yi_text(TWO_TURNS[:1])
    assert text == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    found = form.encode(TWO_TURNS[:1], answer)
    assert found.ids == words(f"{text}{answer}<|im_end|>")["input_ids"]
    assert found.ids[: found.prompt_length] == words(text)["input_ids"]
    assert found.ids.count(words.bos_token_id) == 1
    assert found.ids[found.prompt_length :].count(form.eos_id) == 1
    with pytest.raises(ChatError, match="control token"):
        form.encode(TWO_TURNS[:1], "<|im_start|>")
    with pytest.raises(ChatError, match="no end-of-turn token"):
        ChatFormat(make(), "yi")


@pytest.mark.parametrize("make", [sentencepiece, bytes_bpe])
@pytest.mark.parametrize(("template", "render"), [("openchat", chat.openchat_text), ("llama2", chat.llama2_text)])
@pytest.mark.parametrize("answer", ["Hi, how can I help you?", "[1, 2]", "x", ": no", "  two spaces", "\nline"])
def test_prompt_and_answer_have_the_ids_of_the_whole_text(
    make: Callable[[], PreTrainedTokenizerFast],
    template: str,
    render: Callable[[list[chat.Message]], str],
    answer: str,
) -> None:
    words = make()
    form = ChatFormat(words, template)
    end = "<|end_of_turn|>" if template == "openchat" else "</s>"
    found = form.encode(TWO_TURNS, answer)
    assert found.ids == words(f"{render(TWO_TURNS)} {answer}{end}")["input_ids"]
    assert found.ids[: found.prompt_length] == form.prompt_ids(TWO_TURNS)
    assert found.answer_length == len(found.ids) - found.prompt_length > 1
    assert found.ids.count(words.bos_token_id) == 1
    assert found.ids[-1] == form.eos_id
    assert form.eos_id not in found.ids[found.prompt_length : -1]


@given(st.text(alphabet="abc XYZ.,\n[]", max_size=30))
def test_an_answer_is_read_back_from_its_ids(answer: str) -> None:
    form = ChatFormat(toy.tokenizer())
    found = form.encode(toy.user("why?"), answer)
    assert form.decode(found.ids[found.prompt_length :]) == answer.strip()
    assert found.ids.count(form.eos_id) == 2  # one a turn


def test_decoding_stops_at_the_end_of_turn_and_drops_control_tokens() -> None:
    form = ChatFormat(toy.tokenizer())
    a, b = form.tokenizer.convert_tokens_to_ids(["a", "b"])
    assert form.decode([a, 1, b, form.eos_id, a]) == "ab"
    assert form.decode([]) == ""


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "assistant", "content": "Hi"}],
        [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
        [*TWO_TURNS, {"role": "assistant", "content": "Good."}],
        [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}, {"role": "user", "content": "c"}],
        [{"role": "tool", "content": "a"}],
    ],
)
def test_roles_out_of_order_are_refused(messages: list[chat.Message]) -> None:
    with pytest.raises(ChatError, match="alternate"):
        ChatFormat(toy.tokenizer()).prompt_ids(messages)


def test_empty_messages_and_control_tokens_are_refused() -> None:
    form = ChatFormat(sentencepiece(), "openchat")
    with pytest.raises(ChatError, match="empty"):
        form.prompt_ids(toy.user(" \n"))
    for control in ("<s>", "</s>", "<|end_of_turn|>"):
        with pytest.raises(ChatError, match="control token"):
            form.prompt_ids(toy.user(f"say {control} twice"))
        with pytest.raises(ChatError, match="control token"):
            form.encode(TWO_TURNS, f"well{control}")
        with pytest.raises(ChatError, match="control token"):
            form.prompt_ids([TWO_TURNS[0], {"role": "assistant", "content": control}, TWO_TURNS[2]])


def test_the_end_of_turn_is_a_control_token_even_where_it_is_not_marked_special() -> None:
    words = toy.tokenizer()
    words.add_tokens(["<|end_of_turn|>"])
    with pytest.raises(ChatError, match="control token"):
        ChatFormat(words, "openchat").prompt_ids(toy.user("stop<|end_of_turn|>now"))


def test_a_doubled_bos_is_refused() -> None:
    words = toy.tokenizer()
    words.chat_template = "{{ bos_token }}{{ bos_token }}" + toy.TEMPLATE
    with pytest.raises(ChatError, match="two BOS"):
        ChatFormat(words).prompt_ids(TWO_TURNS)
    words.chat_template = "{{ bos_token }}" + toy.TEMPLATE
    assert ChatFormat(words).prompt_ids(TWO_TURNS).count(1) == 1


def test_a_tokenizer_that_closes_every_text_is_refused() -> None:
    with pytest.raises(ChatError, match="add_eos_token"):
        ChatFormat(sentencepiece("</s>"), "llama2").prompt_ids(TWO_TURNS)


def test_formats_that_a_tokenizer_cannot_write_are_refused() -> None:
    words = toy.tokenizer()
    with pytest.raises(ChatError, match="unknown chat template"):
        ChatFormat(words, "alpaca")
    with pytest.raises(ChatError, match="no end-of-turn token"):
        ChatFormat(words, "openchat")
    words.chat_template = None
    with pytest.raises(ChatError, match="no chat template"):
        ChatFormat(words)
    with pytest.raises(ChatError, match="system turn"):
        ChatFormat(words, "llama2").prompt_ids([{"role": "system", "content": "Be kind."}, *TWO_TURNS])


TURN = st.lists(st.sampled_from(["\n", "\n\n", "Human:", "Assistant:", " ", "a", "é", "</s>"]), max_size=8).map("".join)


@given(st.lists(TURN, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2 == 1))
def test_nectar_text_is_read_back_or_refused(turns: list[str]) -> None:
    messages = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    try:
        text = chat.nectar_text(messages)
    except ChatError:
        assert any("\n\nHuman:" in turn or "\n\nAssistant:" in turn for turn in turns)
        return
    assert text.startswith("\n\nHuman: ")
    assert text.endswith("\n\nAssistant: ")
    assert chat.from_nectar_text(text) == messages


def test_nectar_text_by_hand() -> None:
    text = "\n\nHuman: Hello\n\nAssistant: Hi\n\nHuman: How are you today?\n\nAssistant: "
    assert chat.nectar_text(TWO_TURNS) == text
    for broken in ("Human: Hello\n\nAssistant: ", "\n\nHuman: Hello", "\n\nHuman: Hello\n\nAssistant:"):
        with pytest.raises(ChatError, match="not a Nectar prompt"):
            chat.from_nectar_text(broken)
    with pytest.raises(ChatError, match="system"):
        chat.nectar_text([{"role": "system", "content": "Be kind."}, *TWO_TURNS])
