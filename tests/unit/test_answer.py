"""An answer in the making: what is trimmed, what stops it, what is delivered when."""

import pytest

from lfx_local_runtimes.errors import ContextOverflow
from lfx_local_runtimes.runtimes.chat.answer import Answer
from lfx_local_runtimes.runtimes.chat.templates import BUILT_IN, Template
from lfx_local_runtimes.runtimes.requests import GenerationStream, Request, Run
from lfx_local_runtimes.runtimes.tasks.generation import (
    GenerationConfig,
    GenerationResult,
    Grammar,
    TextDelta,
    Tool,
)


def answer(
    *pieces: str, form: str = "dialogue", rest: str = "", **options: object
) -> tuple[list[str], GenerationResult]:
    """What a request gets when the engine says these pieces."""
    request = Request("m", GenerationConfig.model_validate({"prompt": "Hi", **options}))
    request.start()
    made = Answer(request, BUILT_IN[form])
    made.admit(3, 100)
    for piece in pieces:
        if not made.push(piece):
            break
    made.finish("length", rest, {})
    stream = GenerationStream(Run(request))
    texts = list(stream)
    assert stream.result is not None
    assert "".join(texts) == stream.result.text
    return texts, stream.result


def test_the_space_of_the_form_is_not_part_of_the_answer() -> None:
    assert answer(" ", "\n", " Paris", " is")[0] == ["Paris", " is"]
    assert answer(" Paris", form="gemma")[0] == [" Paris"]
    assert answer(" Paris", raw=True)[0] == [" Paris"]


def test_a_callers_stop_string_does_not_match_that_space() -> None:
    texts, result = answer("\n\n", "yes", "\n\n", "no", stop="\n\n")
    assert "".join(texts) == "yes"
    assert result.finish_reason == "stop"
    assert result.tokens_generated == 4, "the second newline might have begun the next question"


def test_the_next_turn_ends_it_even_where_the_answer_is_empty() -> None:
    assert answer("\nQues", "tion: more")[1].text == ""
    assert answer("a\nQues", "tion: more")[1].text == "a"
    assert answer("a\nQues", "tion: more")[1].finish_reason == "stop"
    assert answer("a\nQuestion: more", raw=True)[1].text == "a\nQuestion: more"


def test_what_only_looked_like_a_stop_is_delivered_at_the_end() -> None:
    assert answer("a\nQues", stop="zz")[1].text == "a\nQues"
    assert answer("az", stop="zz")[1].text == "az"
    assert answer("a", rest="z", stop="zz")[1].text == "az"
    assert answer("a\nQues", rest="z", stop="szz")[1].text == "a\nQuesz"


def test_room_and_limits() -> None:
    made = Answer(Request("m", GenerationConfig(prompt="Hi", max_tokens=50)), BUILT_IN["dialogue"])
    assert made.admit(10, 100) == 50
    assert made.admit(70, 100) == 30
    with pytest.raises(ContextOverflow, match=r"100 tokens; the context holds 100"):
        made.admit(100, 100)


def test_seeds() -> None:
    assert answer("a", seed=7)[1].metadata["seed"] == 7
    assert answer("a")[1].metadata["seed"] != answer("a")[1].metadata["seed"]


# -- thought, calls, stop strings --------------------------------------------------------------------------------------

ADD = Tool(name="add", parameters={"properties": {"a": {"type": "integer"}}})
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
QWEN = Template("model", "<think><tool_call>{% for message in messages %}{{ message.content }}{% endfor %}")
OPENED = Template("model", f"{QWEN.source}{{{{ '<think>\\n' }}}}")


def deltas(
    *pieces: str, template: Template = QWEN, **options: object
) -> tuple[list[TextDelta], GenerationResult, Answer]:
    """What a request gets when the engine says these pieces, and what it is made to say in between."""
    request = Request("m", GenerationConfig.model_validate({"prompt": "Hi", **options}))
    request.start()
    made = Answer(request, template)
    made.admit(3, 1000)
    left = list(pieces)
    while left:
        going = made.push(left.pop(0))
        if forced := made.take_forced():
            left[:0] = list(forced)
        if not going:
            break
    made.finish("stop", "", {})
    stream = GenerationStream(Run(request))
    told = list(stream.deltas())
    assert stream.result is not None
    assert "".join(delta.text for delta in told) == stream.result.text
    assert "".join(delta.reasoning for delta in told) == (stream.result.reasoning or "")
    return told, stream.result, made


def test_thought_text_and_calls_each_have_their_place() -> None:
    told, result, _ = deltas(
        "<think>\n", "Hm", ".</think>\n\n", "Let me see.", "\n" + CALL[:20], CALL[20:], tools=(ADD,)
    )
    assert [(delta.reasoning, delta.text, len(delta.tool_calls)) for delta in told] == [
        ("Hm", "", 0), (".", "", 0), ("", "Let me see.", 0), ("", "\n", 0), ("", "", 1),
    ]  # fmt: skip
    (call,) = result.tool_calls
    assert (result.reasoning, result.text, call.name, call.arguments) == ("Hm.", "Let me see.\n", "add", '{"a": 1}')
    assert result.finish_reason == "tool_calls"


def test_stop_strings_count_in_the_text_only() -> None:
    stop = {"tools": (ADD,), "stop": ("add",)}
    told, result, _ = deltas("<think>add</think>", CALL, "Now add", " more", **stop)
    assert (result.reasoning, result.text, len(result.tool_calls)) == ("add", "Now ", 1)
    assert told[-1].tokens == 3


def test_a_cancel_or_a_limit_is_told_though_calls_were_made() -> None:
    for reason in ("length", "cancelled"):
        request = Request("m", GenerationConfig(prompt="Hi", tools=(ADD,)))
        request.start()
        made = Answer(request, QWEN)
        made.push(CALL)
        made.finish(reason, "", {})
        result = GenerationStream(Run(request)).wait()
        assert (result.finish_reason, len(result.tool_calls)) == (reason, 1)


def test_one_call_where_one_is_wanted_ends_the_answer() -> None:
    _, result, _ = deltas(CALL, CALL, "more", tools=(ADD,), parallel_tool_calls=False)
    assert (len(result.tool_calls), result.tokens_generated, result.finish_reason) == (1, 1, "tool_calls")


def test_calls_are_text_where_no_tool_may_be_called() -> None:
    for options in (
        {},
        {"tools": (ADD,), "tool_choice": "none"},
        {"tools": (ADD,), "grammar": Grammar(kind="json_object")},
    ):
        _, result, made = deltas(CALL, **options)
        assert (result.text, result.finish_reason) == (CALL, "stop")
        assert "<tool_call>" not in made.marks
    assert "<tool_call>" in deltas(CALL, tools=(ADD,))[2].marks


def test_a_forced_call_streams_and_ends_the_answer() -> None:
    pieces = ('{"name": "add", "argu', 'ments": {"a"', ": 1}", "}", "more")
    told, result, made = deltas(*pieces, tools=(ADD,), tool_choice="add")
    assert [call.arguments for delta in told for call in delta.tool_calls] == ['{"a"', ": 1}"]
    assert (result.tool_calls[0].arguments, result.tokens_generated) == ('{"a": 1}', 3)
    assert (result.finish_reason, result.text) == ("tool_calls", "")
    assert made.grammar is not None
    assert made.grammar.kind == "lark"


def test_the_callers_grammar_is_the_answers() -> None:
    grammar = Grammar(kind="regex", text="a+")
    assert deltas("aa", grammar=grammar)[2].grammar == grammar
    assert deltas("aa")[2].grammar is None


def test_a_grammar_decides_where_the_answer_ends() -> None:
    grammar = Grammar(kind="regex", text="(?s:.*)")
    said = answer("a\nQuestion: b", " c", grammar=grammar)[1]
    assert (said.text, said.finish_reason) == ("a\nQuestion: b c", "length")
    assert answer("a b", " c", grammar=grammar, stop="b")[1].text == "a "


def test_a_grammar_leaves_no_thought() -> None:
    _, result, made = deltas('{"a": "<think>"}', template=OPENED, grammar=Grammar(kind="json_object"))
    assert made.prompt.endswith("<think>\n\n</think>\n\n")
    assert (result.text, result.reasoning) == ('{"a": "<think>"}', None)


def test_a_thought_that_the_prompt_began() -> None:
    _, result, made = deltas("Hm.", "</think>", "\n\nYes", template=OPENED)
    assert made.prompt.endswith("<think>\n")
    assert (result.reasoning, result.text) == ("Hm.", "Yes")


@pytest.mark.parametrize(
    ("template", "budget", "pieces", "thought"),
    [
        (QWEN, 2, ("<think>", "a ", "b", "Yes"), "a b"),
        (QWEN, 0, ("<think>", "Yes"), ""),
        (QWEN, 9, ("<think>", "a ", "b", "</think>", "Yes"), "a b"),
        (QWEN, 1, ("Yes",), ""),
        (OPENED, 2, ("a ", "b", "Yes"), "a b"),
        (OPENED, None, ("a ", "b", " c", "</think>", "Yes"), "a b c"),
    ],
)
def test_a_thought_ends_with_its_budget(
    template: Template, budget: int | None, pieces: tuple[str, ...], thought: str
) -> None:
    _, result, _ = deltas(*pieces, template=template, reasoning_budget=budget)
    assert ((result.reasoning or "").rstrip(), result.text) == (thought, "Yes")


def test_a_budget_of_nothing_closes_the_thought_in_the_prompt() -> None:
    _, result, made = deltas("Yes", template=OPENED, reasoning_budget=0)
    assert made.prompt.endswith("<think>\n\n</think>\n\n")
    assert (result.reasoning, result.text) == (None, "Yes")


def test_raw_text_is_delivered_as_it_is() -> None:
    _, result, made = deltas("<think>", "a</think>", CALL, raw=True)
    assert result.text == f"<think>a</think>{CALL}"
    assert made.marks == ()


def test_an_answer_that_is_continued_keeps_its_space() -> None:
    messages = [{"role": "user", "content": "6 * 7?"}, {"role": "assistant", "content": "That is"}]
    request = Request("m", GenerationConfig.model_validate({"messages": messages, "continue_final_message": True}))
    request.start()
    made = Answer(request, BUILT_IN["dialogue"])
    assert made.prompt.endswith("Answer: That is")
    made.push(" 42.")
    made.finish("stop", "", {})
    assert GenerationStream(Run(request)).wait().text == " 42."
