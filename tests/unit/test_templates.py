"""Template choice, the built-in forms, and hostile Jinja."""

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from jinja2 import TemplateError

from lfx_local_runtimes.errors import InvalidInput, TemplateFault
from lfx_local_runtimes.runtimes.chat.template_sandbox import TemplateRefusal, TemplateSandbox
from lfx_local_runtimes.runtimes.chat.templates import BUILT_IN, Template, choose_template, render, strip_bos
from lfx_local_runtimes.runtimes.formats.info import ModelFormat, ModelInfo
from lfx_local_runtimes.runtimes.tasks.generation import ChatMessage, Tool, ToolCall

CHATML = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}{{ tools | tojson }}{{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if loop.first and message['role'] != 'system' %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
    {%- if message.role == 'tool' %}
        {%- if loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
        {%- continue %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {% generation %}{{- message.content }}{% endgeneration %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

LLAMA3 = """{{- bos_token }}
{%- set ns = namespace(system='') %}
{%- if not date_string is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set ns.system = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- ns.system }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)


def said(*turns):
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [ChatMessage(role=roles[role], content=content) for role, content in turns]


def info(**facts):
    facts = {"format": ModelFormat.GGUF, "files": (), "size_bytes": 1} | facts
    return ModelInfo(path=Path("model.gguf"), **facts)


# -- choice ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"architecture": "gemma3", "chat_template": "{{ messages }}", "instruct": True}, "model"),
        ({"architecture": "gemma3", "chat_template": "{{ messages }}"}, "model"),
        ({"architecture": "gemma3", "instruct": True}, "gemma"),
        ({"architecture": "gemma3n", "instruct": True}, "gemma"),
        ({"architecture": "Gemma2ForCausalLM", "instruct": True}, "gemma"),
        ({"architecture": "gemma3_text", "instruct": True}, "gemma"),
        ({"architecture": "gemma4", "instruct": True}, "dialogue"),
        ({"architecture": "qwen2moe", "instruct": True}, "chatml"),
        ({"architecture": "llama", "vocabulary": 128_256, "instruct": True}, "llama3"),
        ({"architecture": "llama", "vocabulary": 32_000, "instruct": True}, "dialogue"),
        ({"architecture": "llama", "instruct": True}, "dialogue"),
        ({"instruct": True}, "dialogue"),
        ({"architecture": "gemma3"}, "dialogue"),
        ({"architecture": "llama", "vocabulary": 128_256}, "dialogue"),
    ],
)
def test_choice_by_the_files(facts, name):
    assert choose_template(info(**facts)).name == name


@pytest.mark.parametrize("name", [*BUILT_IN, " ChatML "])
def test_override_by_name_wins_over_the_files(name):
    assert choose_template(info(chat_template="{{ messages }}"), name).name == name.strip().lower()


def test_override_by_jinja_text():
    template = choose_template(info(architecture="gemma"), "{{ messages[0].content }}<|im_end|>")
    assert (template.name, template.stop, template.folds_system) == ("custom", ("<|im_end|>",), True)
    assert render(template, said(("u", "hello"))) == "hello<|im_end|>"


def test_override_that_is_neither_names_what_there_is():
    with pytest.raises(InvalidInput, match=r"'chatlm' is neither .* gemma, chatml, llama3, dialogue, none"):
        choose_template(info(), "chatlm")


def test_stop_strings_end_the_turn():
    assert choose_template(info()).stop == ("\nQuestion:",)
    assert choose_template(info(architecture="gemma", instruct=True)).stop == ("<end_of_turn>",)
    assert choose_template(info(chat_template=LLAMA3)).stop == ("<|eot_id|>",)


# -- built-in forms --------------------------------------------------------------------------------------------------

CONVERSATION = said(("s", "Be brief."), ("u", " Hi "), ("a", "Hello."), ("t", "42"), ("u", "Sum?"))


@pytest.mark.parametrize(
    ("name", "messages", "text"),
    [
        ("dialogue", said(("u", "Why?")), "Question: Why?\nAnswer:"),
        ("dialogue", CONVERSATION, "Be brief.\n\nQuestion: Hi\nAnswer: Hello.\nQuestion: 42\n\nSum?\nAnswer:"),
        ("dialogue", said(("u", "Why?"), ("a", " So")), "Question: Why?\nAnswer: So"),
        ("dialogue", said(("s", "Once")), "Once\n\nAnswer:"),
        ("none", said(("u", " as is ")), " as is "),
        ("none", said(("s", "a"), ("u", "b"), ("a", "c")), "a\n\nb\n\nc"),
        ("gemma", said(("u", "Why?")), "<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n"),
        (
            "gemma",
            CONVERSATION,
            "<start_of_turn>user\nBe brief.\n\n Hi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
            "<start_of_turn>user\n```tool_output\n42\n```\n\nSum?<end_of_turn>\n<start_of_turn>model\n",
        ),
        ("gemma", said(("s", "Go.")), "<start_of_turn>user\nGo.<end_of_turn>\n<start_of_turn>model\n"),
        (
            "gemma",
            said(("u", "Why?"), ("a", "Well, ")),
            "<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\nWell, ",
        ),
        (
            "chatml",
            said(("s", "S"), ("u", "U"), ("t", "T")),
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>user\n"
            "<tool_response>\nT\n</tool_response><|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        (
            "llama3",
            said(("u", " U "), ("a", "A")),
            "<|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA",
        ),
    ],
)
def test_built_in_form(name, messages, text):
    assert render(BUILT_IN[name], messages, bos_token="<bos>") == text


@pytest.mark.parametrize(
    ("text", "bos", "expected"),
    [
        ("<bos>Hi", "<bos>", ("Hi", True)),
        ("<bos><bos>Hi", "<bos>", ("<bos>Hi", True)),
        ("Hi<bos>", "<bos>", ("Hi<bos>", False)),
        ("Hi", "", ("Hi", False)),
    ],
)
def test_strip_bos(text, bos, expected):
    assert strip_bos(text, bos) == expected


# -- the model's own, against transformers ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<bos>": 0, "<eos>": 1, "?": 2}, unk_token="?")),
        bos_token="<bos>",
        eos_token="<eos>",
    )


@pytest.mark.parametrize("source", [CHATML, LLAMA3, GEMMA], ids=["chatml", "llama3", "gemma"])
@pytest.mark.parametrize(
    "messages",
    [
        said(("u", "  What is 2 < 3 & 4?  ")),
        said(("u", "Hi"), ("a", "Hello\n"), ("u", "ünï <b>'\"</b> 你好 \\n")),
        said(("s", "Be brief."), ("u", "Hi")),
        said(("s", "Be brief."), ("u", "Hi"), ("a", "…"), ("t", "{}"), ("t", "1"), ("u", "Go")),
    ],
    ids=["one", "turns", "system", "tools"],
)
def test_jinja_as_transformers_renders_it(tokenizer, source, messages):
    if source is LLAMA3:  # knows no results of tools: they are told as the user's
        messages = [message for message in messages if message.role != "tool"]
    plain = [{"role": message.role, "content": message.content} for message in messages]
    template = Template("model", source)
    try:
        expected = tokenizer.apply_chat_template(
            plain, chat_template=source, tokenize=False, add_generation_prompt=True
        )
    except TemplateError as error:
        with pytest.raises(TemplateRefusal, match=str(error).split("/")[0]):
            render(template, messages, bos_token="<bos>", eos_token="<eos>")
    else:
        assert render(template, messages, bos_token="<bos>", eos_token="<eos>") == expected


def test_tojson_as_transformers_renders_it(tokenizer):
    source = "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ dict(a=1) | tojson }}"
    messages = said(("u", "<é&'>"))
    plain = [{"role": "user", "content": "<é&'>"}]
    expected = tokenizer.apply_chat_template(plain, chat_template=source, tokenize=False)
    assert render(Template("model", source), messages) == expected


def test_system_text_is_folded_when_a_gemma_template_refuses_it():
    messages = said(("s", "Be brief."), ("u", "Hi"), ("a", "Yes"), ("u", "Bye"))
    text = render(choose_template(info(architecture="gemma2", chat_template=GEMMA)), messages, bos_token="<bos>")
    assert strip_bos(text, "<bos>") == (render(BUILT_IN["gemma"], messages), True)


def test_other_families_hear_their_templates_refusal():
    template = choose_template(info(architecture="llama", chat_template=GEMMA))
    with pytest.raises(TemplateFault, match="System role not supported"):
        render(template, said(("s", "Be brief."), ("u", "Hi")))


def test_refusal_in_the_templates_words_names_the_message():
    template = choose_template(info(architecture="gemma2", chat_template=GEMMA))
    with pytest.raises(TemplateFault, match=r"messages\[2\] \(user\): .*roles must alternate"):
        render(
            template, said(("s", "x"), ("u", "Hi"), ("u", "there"), ("a", "Yes"), ("u", "Bye"), ("a", "…"), ("u", "?"))
        )


def test_jinja_does_not_continue_the_assistant_without_being_told():
    with pytest.raises(InvalidInput, match=r"messages\[1\] is the assistant's.*continue_final_message"):
        render(Template("model", CHATML), said(("u", "Hi"), ("a", "Yes")))


# -- whose fault a failure is ----------------------------------------------------------------------------------------

PICKY = (
    "{% for message in messages %}{% if message.content == 'bad' %}{{ nothing.at.all }}{% endif %}"
    "{{ message.content }}{% endfor %}"
)


@pytest.mark.parametrize("place", [0, 1, 3, 6])
def test_the_message_at_fault_is_named(place):
    messages = said(*[("ua"[index % 2], "bad" if index == place else "good") for index in range(7)])
    with pytest.raises(TemplateFault, match=rf"^messages\[{place}\] \({messages[place].role}\): .*undefined"):
        render(Template("model", PICKY), messages)


@pytest.mark.parametrize("source", ["{{ nothing.at.all }}", "{% if messages %}", "{{ raise_exception('No.') }}"])
def test_a_template_that_always_fails_blames_no_message(source):
    with pytest.raises(TemplateFault, match=r"^The chat template"):
        render(Template("model", source), said(("s", "a"), ("u", "b")))


# -- tools -----------------------------------------------------------------------------------------------------------

ADD = Tool(name="add", description="Adds.", parameters={"type": "object", "properties": {"a": {"type": "integer"}}})
CALLED = [
    *said(("s", "Be brief."), ("u", "1 + 2?")),
    ChatMessage(role="assistant", content="", tool_calls=(ToolCall(id="call_1", name="add", arguments='{"a": 1}'),)),
    ChatMessage(role="tool", content="3", tool_call_id="call_1"),
    ChatMessage(role="user", content="And?"),
]

QWEN = """{%- if tools %}{{ '<tools>' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{{ '</tools>' }}{% endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- '<tool_call>' + call.function.name + ' ' + call.function.arguments | tojson + '</tool_call>' }}
    {%- endfor %}
    {%- if message.role == 'tool' %}{{ ' for ' + message.name + ' ' + message.tool_call_id }}{% endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think></think>' }}{% endif %}"""

STRICT_IDS = (
    "{% for message in messages %}{% for call in message.tool_calls or [] %}{% if call.id | length != 9 %}"
    "{{ raise_exception('ids have length 9') }}{% endif %}{{ call.id }}{% endfor %}"
    "{% if message.role == 'tool' %}={{ message.tool_call_id }}{% endif %}{% endfor %}{{ tools }}"
)


def test_a_template_that_knows_tools_gets_them_as_data():
    text = render(Template("model", QWEN), CALLED, tools=[ADD])
    data = '{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": '
    assert text.startswith(f"<tools>{data}")
    assert '<tool_call>add {"a": 1}</tool_call>' in text
    assert "<|im_start|>tool\n3 for add call_1<|im_end|>" in text
    assert text.endswith("<|im_start|>assistant\n")
    assert "<tools>" not in render(Template("model", QWEN), CALLED)


def test_as_transformers_renders_tools(tokenizer):
    plain = [
        {"role": "user", "content": "1 + 2?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}],
        },
        {"role": "tool", "content": "3", "tool_call_id": "call_1", "name": "add"},
    ]
    tools = [{"type": "function", "function": ADD.model_dump()}]
    expected = tokenizer.apply_chat_template(
        plain, tools=tools, chat_template=QWEN, tokenize=False, add_generation_prompt=True
    )
    assert render(Template("model", QWEN), CALLED[1:4], tools=[ADD]) == expected


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_built_in_forms_are_told_in_words(name):
    text = render(BUILT_IN[name], CALLED, tools=[ADD])
    assert text.index("Be brief.") < text.index("Adds.") < text.index("1 + 2?")
    assert text.index("1 + 2?") < text.index('{"a": 1}') < text.index("3", text.index('{"a": 1}')) < text.index("And?")


def test_a_template_that_knows_no_tools_is_told_in_words():
    template = choose_template(info(architecture="gemma2", chat_template=GEMMA))
    text = render(template, CALLED, tools=[ADD], bos_token="<bos>")
    assert text.startswith("<bos><start_of_turn>user\nBe brief.\n\nYou can call functions.")
    assert 'model\n```json\n{"name": "add", "arguments": {"a": 1}}\n```<end_of_turn>' in text
    assert "user\n```tool_output\nadd returned: 3\n```\n\nAnd?<end_of_turn>" in text


def test_our_system_message_is_folded_where_the_role_is_refused():
    text = render(Template("model", GEMMA), said(("u", "Hi")), tools=[ADD])
    assert text.startswith("<start_of_turn>user\nYou can call functions.")


def test_a_blamed_message_is_the_callers():
    source = PICKY + "{% if false %}'tool'{% endif %}"
    messages = [*CALLED[1:4], ChatMessage(role="user", content="bad")]
    with pytest.raises(TemplateFault, match=r"messages\[3\] \(user\)"):
        render(Template("model", source), messages, tools=[ADD])


def test_arguments_are_text_for_templates_that_join_them():
    source = (
        "{% for message in messages %}{% for call in message.tool_calls or [] %}"
        "{{ 'CALL ' + call.function.arguments }}{% endfor %}{% endfor %}"
    )
    assert render(Template("model", source), CALLED) == 'CALL {"a": 1}'


def test_ids_have_the_length_a_template_wants():
    text = render(Template("model", STRICT_IDS), CALLED, tools=[ADD])
    (call_id, _, answered) = text.partition("=")
    assert len(call_id) == 9
    assert answered.startswith(call_id)


def test_arguments_that_are_no_json_stay_text():
    broken = CALLED[2].model_copy(update={"tool_calls": (ToolCall(id="1", name="add", arguments='{"a":'),)})
    assert '<tool_call>add "{\\"a\\":"</tool_call>' in render(Template("model", QWEN), [*CALLED[:2], broken, CALLED[4]])


def test_a_template_that_can_is_asked_for_no_thought():
    assert render(Template("model", QWEN), said(("u", "Hi")), thinking=False).endswith("<think></think>")


# -- continuing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [CHATML, LLAMA3, GEMMA, QWEN], ids=["chatml", "llama3", "gemma", "qwen"])
@pytest.mark.parametrize("content", ["Well, ", "Hi", "", "{% x %}\n"])
def test_jinja_continues_the_last_message(source, content):
    messages = said(("u", "Hi"), ("a", content))
    text = render(Template("model", source), messages, continue_final=True)
    closed = render(Template("model", source), [*messages, *said(("u", "And?"))])
    assert text.endswith(content)
    assert closed.startswith(text.rstrip())
    assert "<|im_end|>" not in text[-20:]


def test_a_message_that_the_template_leaves_out_cannot_be_continued():
    with pytest.raises(InvalidInput, match=r"messages\[1\]"):
        render(Template("model", "{{ messages[0].content }}"), said(("u", "Hi"), ("a", "Well")), continue_final=True)


# -- hostile templates -----------------------------------------------------------------------------------------------

LOOP = "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4
PATIENCE_S = 60.0


@pytest.fixture
def sandbox():
    """With time enough on a busy machine too: what it refuses, it refuses for another reason."""
    sandbox = TemplateSandbox(limit_s=PATIENCE_S)
    yield sandbox
    sandbox.close()


@pytest.mark.parametrize("source", [LOOP, "{{ lipsum(10**8) }}"])
def test_a_template_without_end_fails_alone(sandbox, source):
    sandbox._limit_s = 0.5
    with pytest.raises(TemplateFault, match=r"longer than 0\.5 s"):
        sandbox.render(source, {"messages": []})
    sandbox._limit_s = PATIENCE_S
    assert sandbox.render("{{ messages | length }}", {"messages": [1, 2]}) == "2"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ 'x' * 10**10 }}", "memory"),
        ("{{ '%9999999999d' % 1 }}", "memory"),
        ("{{ range(10**9) }}", "Range too big"),
        ("{% for a in range(9999) %}{{ 'x' * 9999 }}{% endfor %}", "longer than 4,194,304 characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "Recursion"),
        ("{{ ''.__class__ }}", "unsafe"),
        ("{{ ''['__class__'] }}", "unsafe"),
        ("{{ '' | attr('__class__') }}", "unsafe"),
        ("{{ '{0.__class__}'.format(1) }}", "unsafe"),
        ("{{ raise_exception.__globals__ }}", "unsafe"),
        ("{{ namespace(__class__=1) }}", "namespace"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% if messages %}", "line 1: Unexpected end of template"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{% include 'x' %}", "loader"),
    ],
)
def test_hostile_template_fails_alone(sandbox, source, reason):
    with pytest.raises(TemplateFault, match=f"(?i){reason}"):
        sandbox.render(source, {"messages": []})
    assert sandbox.render("{{ messages | length }}", {"messages": [1, 2]}) == "2"


def test_a_slow_template_does_not_hold_up_others():
    sandbox = TemplateSandbox(limit_s=PATIENCE_S)
    sandbox.warm(LOOP)
    faults = []

    def slow():
        try:
            sandbox.render(LOOP, {})
        except TemplateFault as fault:
            faults.append(fault)

    thread = threading.Thread(target=slow)
    thread.start()
    try:
        assert sandbox.render("fine", {}) == "fine"
        assert thread.is_alive()
    finally:
        sandbox.close()
        thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert len(faults) == 1


def test_many_threads_get_their_own_answers(sandbox):
    answers = {}

    def ask(number):
        answers[number] = [sandbox.render("{{ a }}-{{ b }}", {"a": number, "b": b}) for b in range(5)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert answers == {number: [f"{number}-{b}" for b in range(5)] for number in range(12)}
    assert len(sandbox._idle) <= 4


def test_text_comes_through_whole(sandbox):
    text = "\n\u2028 🏳️‍🌈 \x00 {{ a }}" * 1000
    assert sandbox.render("{{ text }}", {"text": text}) == text
    assert sandbox.render("{{ '\\ud800' }}", {}) == "?"


def test_closing_leaves_no_process_and_rendering_starts_again(sandbox, recwarn):
    assert sandbox.render("a", {}) == "a"
    child = sandbox._idle[0].child
    sandbox.close()
    assert not child.alive
    assert _ends(child.pid)
    assert sandbox.render("b", {}) == "b"
    del child
    gc.collect()
    assert not recwarn.list


def test_a_process_that_was_killed_is_replaced(sandbox):
    assert sandbox.render("a", {}) == "a"
    child = sandbox._idle[0].child
    child.kill()
    child.wait()
    assert sandbox.render("b", {}) == "b"
    assert sandbox._idle[0].child is not child


def test_warm_compiles_ahead(sandbox):
    sandbox.warm("{{ 1 }}")
    for thread in threading.enumerate():
        if thread.name == "warm chat template":
            thread.join(PATIENCE_S)
    assert len(sandbox._idle) == 1
    warmed = sandbox._idle[0]
    assert sandbox.render("{{ 1 }}", {}) == "1"
    assert sandbox._idle == [warmed]


EXIT = """
from lfx_local_runtimes.runtimes.chat.template_sandbox import get_sandbox
import sys, threading, time
sandbox = get_sandbox()
sandbox.render("warm", {})
if sys.argv[1] == "busy":
    threading.Thread(target=sandbox.render, args=(sys.argv[2], {}), daemon=True).start()
    while not sandbox._busy: time.sleep(0)
print(*[worker.child.pid for worker in [*sandbox._idle, *sandbox._busy]], flush=True)
if sys.argv[1] == "killed":
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="asks for a process by os.kill(pid, 0)")
@pytest.mark.parametrize("how", ["idle", "busy", "killed"])
def test_the_process_goes_with_its_parent(how):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", EXIT, how, LOOP], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == (-9 if how == "killed" else 0), done.stderr
    assert "Error" not in done.stderr
    assert "Warning" not in done.stderr
    (pid,) = map(int, done.stdout.split())
    assert _ends(pid)


def _ends(pid: int) -> bool:
    import psutil

    try:
        process = psutil.Process(pid)
        return (
            process.status() == psutil.STATUS_ZOMBIE or process.wait(PATIENCE_S) is None
        )  # a zombie waits for init to look
    except psutil.NoSuchProcess:
        return True


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_starts_its_own():
    code = """
import os
from lfx_local_runtimes.runtimes.chat.template_sandbox import get_sandbox
sandbox = get_sandbox()
sandbox.render("warm", {})
mine = sandbox._idle[0].child.pid
if os.fork() == 0:
    assert sandbox.render("child", {}) == "child"
    assert sandbox._idle[0].child.pid != mine
    sandbox.close()
    os._exit(0)
assert os.wait()[1] == 0
assert sandbox.render("parent", {}) == "parent"
assert sandbox._idle[0].child.pid == mine
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
