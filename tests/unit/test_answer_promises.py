"""What an answer promises whatever ends it: its least length, and log-probabilities of the text that was answered."""

from types import SimpleNamespace
from typing import Any

import pytest

from lfx_local_runtimes.errors import ContextOverflow, InvalidInput
from lfx_local_runtimes.runtimes.chat.answer import Answer
from lfx_local_runtimes.runtimes.chat.templates import BUILT_IN, Template
from lfx_local_runtimes.runtimes.engines.llama_cpp.sampling import Sampler as LlamaSampler
from lfx_local_runtimes.runtimes.engines.transformers.sampling import logprob as torch_logprob
from lfx_local_runtimes.runtimes.requests import Finished, GenerationStream, Request, Run
from lfx_local_runtimes.runtimes.tasks.generation import (
    GenerationConfig,
    GenerationResult,
    TextDelta,
    TokenLogprob,
    Tool,
)

ADD = Tool(name="add", parameters={"properties": {"a": {"type": "integer"}}})
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
QWEN = Template("model", "<think><tool_call>{% for message in messages %}{{ message.content }}{% endfor %}")


def answered(
    *pieces: str, template: Template = BUILT_IN["dialogue"], rest: str = "", **options: Any
) -> tuple[list[list[str]], GenerationResult]:
    """The tokens whose log-probabilities each delta has, and the result. A token is named by its place and its text."""
    request = Request("m", GenerationConfig.model_validate({"prompt": "Hi", **options}))
    request.start()
    made = Answer(request, template)
    made.admit(3, 100)
    for place, piece in enumerate(pieces):
        logprob = TokenLogprob(token=f"{place}{piece}", logprob=-1.0, bytes=()) if options.get("logprobs") else None
        if not made.push(piece, logprob):
            break
    made.finish("length", rest, {})
    stream = GenerationStream(Run(request))
    told = [[one.token for one in delta.logprobs] for delta in stream.deltas()]
    assert stream.result is not None
    return told, stream.result


# -- the least length ------------------------------------------------------------------------------------------------------


def test_a_turn_that_ends_by_a_text_has_at_least_min_tokens() -> None:
    said = ("a", "\nQuestion:", " b", "\nQuestion:", " c")
    _, result = answered(*said, min_tokens=3)
    assert (result.text, result.tokens_generated, result.finish_reason) == ("a\nQuestion: b", 4, "stop")
    assert answered(*said, min_tokens=1)[1].text == "a"
    assert answered(*said)[1].text == "a"


def test_ignore_eos_ends_no_turn_by_a_text() -> None:
    _, result = answered("a", "\nQuestion:", " b", ignore_eos=True)
    assert (result.text, result.finish_reason) == ("a\nQuestion: b", "length")


def test_the_callers_stop_texts_count_after_min_tokens() -> None:
    said = ("a", ".", "b", ".", "c")
    assert answered(*said, stop=".", min_tokens=3)[1].text == "a.b"
    assert answered(*said, stop=".", ignore_eos=True)[1].text == "a"
    assert answered("a.", ".b", stop="..", min_tokens=1)[1].text == "a..b", "it begins before they are over"


# -- log-probabilities -----------------------------------------------------------------------------------------------------


def told(*pieces: str, **options: Any) -> list[str]:
    deltas, result = answered(*pieces, logprobs=True, **options)
    tokens = [one.token for one in result.logprobs or ()]
    assert [token for delta in deltas for token in delta] == tokens
    return tokens


def test_tokens_of_the_answer_are_told_and_no_others() -> None:
    raw = {"raw": True}
    assert told("a", "b", "c", **raw) == ["0a", "1b", "2c"]
    assert told("a", "b", "ST", "OP", "c", stop="STOP", **raw) == ["0a", "1b"]
    assert told("a", "bST", "OP", stop="STOP", **raw) == ["0a", "1bST"], "a part of it was answered"
    assert told("a", "S", "b", stop="STOP", **raw) == ["0a", "1S", "2b"]
    assert told("a", "\nQues", "tion:", " b") == ["0a"]
    assert told(" ", "\n", " a", "b") == ["2 a", "3b"], "space before the answer belongs to the form"


def test_tokens_of_an_unfinished_character_are_told_with_it() -> None:
    assert told("a", "", "é", "b", raw=True) == ["0a", "1", "2é", "3b"]
    assert told("a", "", rest="\ufffd", raw=True) == ["0a", "1"]
    assert told("a", "", raw=True) == ["0a"]


def test_tokens_of_thoughts_and_calls_are_not_told() -> None:
    said = ("<think>", "Hm", "</think>", "\n\n", "Let", " me.", CALL[:9], CALL[9:], "So")
    assert told(*said, template=QWEN, tools=(ADD,)) == ["4Let", "5 me.", "8So"]
    forced = ('{"name": "add", "argu', 'ments": {"a"', ": 1}", "}")
    assert told(*forced, template=QWEN, tools=(ADD,), tool_choice="add") == []


def test_the_drawn_token_is_among_the_top_ones_in_either_engine() -> None:
    np, torch = pytest.importorskip("numpy"), pytest.importorskip("torch")
    scores = [3.0, 1.0, 2.0, 0.0]

    def by_llama_cpp(token: int, top: int) -> TokenLogprob:
        model: Any = SimpleNamespace(piece=lambda one: b"%d" % one)
        config = GenerationConfig(prompt="x", temperature=0, logprobs=True, top_logprobs=top)
        return LlamaSampler(model, config, 1, ()).logprob(token, np.array(scores, np.float32))

    def by_transformers(token: int, top: int) -> TokenLogprob:
        return torch_logprob(token, torch.tensor(scores), top, lambda one: b"%d" % one)

    for logprob in (by_llama_cpp, by_transformers):
        assert [one.token for one in logprob(0, 2).top] == ["0", "2"]
        assert [one.token for one in logprob(3, 2).top] == ["0", "2", "3"]
        assert logprob(3, 0).top == ()
    assert by_llama_cpp(3, 2).logprob == pytest.approx(by_transformers(3, 2).logprob)


# -- the prompt ----------------------------------------------------------------------------------------------------------


def test_a_prompt_that_cannot_fit_is_refused_after_its_first_pieces() -> None:
    counted: list[int] = []

    def count(text: str) -> int:
        counted.append(len(text))
        return len(text) // 31

    def check(blanks: int, **options: Any) -> None:
        counted.clear()
        request = Request("m", GenerationConfig(prompt=" " * blanks, raw=True, **options))
        Answer(request, BUILT_IN["none"]).check_size(4096, count)

    with pytest.raises(ContextOverflow, match="2,000,000 characters"):
        check(2_000_000)
    assert sum(counted) < 200_000
    check(100_000)
    assert sum(counted) == 100_000
    check(30_000)
    check(2_000_000, truncate=True)
    assert not counted, "short prompts, and those that are cut, cost nothing"


# -- the vocabulary --------------------------------------------------------------------------------------------------------


def test_a_suffix_counts_and_wants_an_engine_that_fills_a_gap() -> None:
    request = Request("m", GenerationConfig(prompt="def add(", suffix=" " * 1_000_000, raw=True))
    with pytest.raises(InvalidInput, match="m cannot fill a gap in a text"):
        Answer(request, BUILT_IN["none"])
    with pytest.raises(ContextOverflow, match=r"1,000,008 characters"):
        Answer(request, BUILT_IN["none"], fills_in=True).check_size(4096, len)


def test_the_tokens_of_a_very_long_prompt_are_not_scored() -> None:
    def admit(**options: Any) -> int:
        config = GenerationConfig.model_validate({"prompt": "a", "raw": True, "echo": True, **options})
        return Answer(Request("m", config), BUILT_IN["none"], echoes=True).admit(20_000, 32_768)

    assert admit() == 512
    with pytest.raises(InvalidInput, match="20,000 tokens"):
        admit(logprobs=True)


def test_an_echo_is_no_part_of_what_stop_looks_at() -> None:
    request = Request("m", GenerationConfig(prompt="a stop b", raw=True, echo=True, stop=("stop",), logprobs=True))
    answer = Answer(request, BUILT_IN["none"], echoes=True)
    first = TokenLogprob(token="a stop b", logprob=None, bytes=())
    answer.echo("a stop b", [first])
    assert answer.push(" c")
    answer.finish("length", "", {})
    echoed, delta, last = request.channel.drain()
    assert isinstance(echoed, TextDelta)
    assert isinstance(delta, TextDelta)
    assert isinstance(last, Finished)
    assert (echoed.text, echoed.tokens, echoed.logprobs, delta.text) == ("a stop b", 0, (first,), " c")
    assert (last.result.text, last.result.tokens_generated, last.result.logprobs) == ("a stop b c", 1, (first,))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"logit_bias": {5: 1, 100: 1}, "prompt": "Hi"}, "logit_bias: token id 100 is not in the model's vocabulary"),
        ({"prompt_ids": (5, 100), "raw": True}, "prompt_ids: token id 100 is not in the model's vocabulary"),
    ],
)
def test_ids_outside_of_the_vocabulary_are_refused(options: dict[str, Any], says: str) -> None:
    made = Answer(Request("m", GenerationConfig.model_validate(options)), BUILT_IN["dialogue"])
    made.check_ids(101)
    with pytest.raises(InvalidInput, match=says):
        made.check_ids(100)
