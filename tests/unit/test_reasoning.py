"""Thought and answer, told apart in any cut of the text."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lfx_local_runtimes.runtimes.chat.reasoning import (
    FAMILIES,
    GEMMA,
    MAGISTRAL,
    THINK,
    HarmonySplitter,
    NoThought,
    Splitter,
    ThoughtSplitter,
    make_splitter,
)

HARMONY = "{{ '<|start|>assistant<|channel|>final<|message|>' }}"


def split(splitter: Splitter, text: str, places: list[int] | tuple[int, ...] = ()) -> tuple[str, str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    parts = [*(splitter.push(text[a:b]) for a, b in pairwise(edges)), splitter.flush()]
    return "".join(part[0] for part in parts), "".join(part[1] for part in parts)


def check(make, text: str, expected: tuple[str, str]) -> None:
    assert split(make(), text) == expected
    assert split(make(), text, range(len(text))) == expected


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("Hello", "", "Hello"),
        ("<think>\nHm.\n</think>\n\nHello", "Hm.\n", "Hello"),
        (" \n<think>Hm.</think>Hello", "Hm.", "Hello"),
        ("<think>\n\n</think>\n\nHello <think>x</think>", "", "Hello <think>x</think>"),
        ("<think>Hm. </thin", "Hm. </thin", ""),
        ("<think>a <think> b</think>c", "a <think> b", "c"),
        ("a </think> b", "", "a </think> b"),
        ("<reasoning>Hm.</reasoning> Hello", "Hm.", "Hello"),
        ("<thinking>Hm", "", "<thinking>Hm"),
        ("\n<th", "", "\n<th"),
        ("\n \n", "", "\n \n"),
        ("", "", ""),
    ],
)
def test_families_whose_template_says_nothing(text: str, thought: str, answer: str) -> None:
    check(lambda: make_splitter("", "Question: Why?\nAnswer:"), text, (thought, answer))


@pytest.mark.parametrize(
    ("source", "prompt", "text", "thought", "answer"),
    [
        ("<think>", "<|im_start|>assistant\n<think>\n", "Hm.</think>\nHello", "Hm.", "Hello"),
        ("<think>", "assistant\n<think>\n\n</think>\n\n", "Hello", "", "Hello"),
        ("</think>", "<|Assistant|><think>\n", "\nHm", "Hm", ""),
        ("[THINK]", "[/INST]", "[THINK]Hm.[/THINK]Hello [THINK]More.[/THINK] Bye", "Hm.More.", "Hello Bye"),
        ("[THINK]", "[/INST]", "<think>Hm", "", "<think>Hm"),
        ("<|channel>thought", "model\n", "<|channel>thought\nHm.\n<channel|>Hello", "Hm.\n", "Hello"),
        ("<|channel>thought", "model\n<|channel>thought\n", "Hm.<channel|>Hello", "Hm.", "Hello"),
        ("<|channel>thought", "model\n", "<|channel>thought\nHm.<|tool_call>call:f{}", "Hm.", "<|tool_call>call:f{}"),
    ],
)
def test_families_by_their_templates(source: str, prompt: str, text: str, thought: str, answer: str) -> None:
    check(lambda: make_splitter(source, prompt), text, (thought, answer))


def test_a_thought_that_is_continued() -> None:
    splitter = make_splitter("<think>", "user\nWhy?\nassistant\n<think>Hm", continued="<think>Hm")
    assert split(splitter, ", so.</think>Yes") == (", so.", "Yes")
    splitter = make_splitter("<think>", "user\nWhy?\nassistant\n<think>Hm.</think>Ye", continued="<think>Hm.</think>Ye")
    assert split(splitter, "s") == ("", "s")


CHANNELS = [
    ("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hello", "Hm.", "Hello"),
    ("<|channel|>final<|message|>Hello<|return|>", "", "Hello"),
    ("<|channel|>analysis<|message|>Hm", "Hm", ""),
    ("<|channel|>analysis<|message|>Hm.<|end|><|start|>assis", "Hm.", ""),
    (
        "<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant<|channel|>commentary to=functions.f "
        '<|constrain|>json<|message|>{"a": 1}<|call|>',
        "",
        'Let me see.<|channel|>commentary to=functions.f<|message|>{"a": 1}<|call|>',
    ),
    (
        " to=functions.f<|channel|>commentary json<|message|>{}<|call|>",
        "",
        "<|channel|>commentary to=functions.f<|message|>{}<|call|>",
    ),
    ("Hello", "", "Hello"),
]


@pytest.mark.parametrize(("text", "thought", "answer"), CHANNELS)
def test_harmony(text: str, thought: str, answer: str) -> None:
    check(lambda: make_splitter(HARMONY, "<|end|><|start|>assistant"), text, (thought, answer))


def test_harmony_goes_on_within_a_message() -> None:
    prompt = "<|start|>user<|message|>Hi<|end|><|start|>assistant<|channel|>final<|message|>Hel"
    assert split(make_splitter(HARMONY, prompt), "lo") == ("", "lo")


FRAGMENTS = st.sampled_from(
    [
        *(mark for family in FAMILIES for mark in (family.opening, family.closing, *family.breaks)),
        *HarmonySplitter.marks, "analysis", "final", "to=functions.f", "<", "[", "</th", "a", "é", " ", "\n",
    ]
)  # fmt: skip


@given(
    st.sampled_from(["", "<think>", "[THINK]", "<|channel>thought", HARMONY]),
    st.sampled_from(["assistant\n", "assistant\n<think>\n", "<|start|>assistant"]),
    st.lists(FRAGMENTS, max_size=10),
    st.lists(st.integers(0, 200), max_size=10),
)
def test_no_cut_makes_a_difference(source: str, prompt: str, fragments: list[str], places: list[int]) -> None:
    text = "".join(fragments)
    whole = split(make_splitter(source, prompt), text)
    assert split(make_splitter(source, prompt), text, places) == whole
    assert split(make_splitter(source, prompt), text, range(len(text))) == whole


def test_nothing_is_held_back_without_need() -> None:
    splitter = make_splitter("<think>", "assistant\n")
    pieces = ["<think>", "Hm", ".", "</", "think>", "\n", "He", "llo < ", "b"]
    assert [splitter.push(piece) for piece in pieces] == [
        ("", ""), ("Hm", ""), (".", ""), ("", ""), ("", ""), ("", ""), ("", "He"), ("", "llo < "), ("", "b"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "prompt", "closing"),
    [
        ("<think>", "assistant\n<think>\n", "\n</think>\n\n"),
        ("<think>", "assistant\n", ""),
        ("", "Answer:", ""),
        (HARMONY, "<|start|>assistant", "<|channel|>final<|message|>"),
    ],
)
def test_doing_without_a_thought(source: str, prompt: str, closing: str) -> None:
    splitter = make_splitter(source, prompt)
    assert splitter.skip() == closing
    assert not splitter.inside
    assert split(splitter, "Hello") == ("", "Hello")


@pytest.mark.parametrize(
    ("splitter", "opening"),
    [
        (ThoughtSplitter((THINK,)), "<think>"),
        (ThoughtSplitter((GEMMA, MAGISTRAL)), "[THINK]"),
        (HarmonySplitter("<|start|>assistant"), "<|channel|>analysis<|message|>"),
    ],
)
def test_the_closing_text_closes_the_thought(splitter: Splitter, opening: str) -> None:
    splitter.push(opening + "Hm.")
    assert splitter.inside
    thought, answer = splitter.push(splitter.closing + "Hello")
    assert (thought.strip(), answer) == ("", "Hello")
    assert not splitter.inside


def test_marks_that_may_be_tokens() -> None:
    assert make_splitter("<|channel>thought", "").marks == ("<|channel>", "<channel|>")
    assert "<|message|>" in make_splitter(HARMONY, "").marks
    assert NoThought().marks == ()
    assert split(NoThought(), "<think>a") == ("", "<think>a")
