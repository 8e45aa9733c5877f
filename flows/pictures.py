"""The flow from a picture to what is to be seen in it."""

from lfx.components.input_output.chat import ChatInput
from lfx.components.input_output.chat_output import ChatOutput
from lfx.components.models_and_agents.prompt import PromptComponent
from lfx.components.processing.parser import ParserComponent

from lfx_local_runtimes.components.local_runtimes.local_model import LocalModelComponent
from lfx_local_runtimes.components.local_runtimes.object_detector import ObjectDetectorComponent
from lfx_local_runtimes.flows.canvas import Flow
from lfx_local_runtimes.flows.text import INSTRUCT_MODEL

PHOTO = "photo.jpg"
REQUEST = "What is in this picture?"
DETECTOR = "PekingU/rtdetr_r50vd"
"""A detector of the hub: no package brings one."""

PLACE = "- {label}: left {xmin:.0f}, top {ymin:.0f}, right {xmax:.0f}, bottom {ymax:.0f}"

PROMPT = """Where the things in a picture are:
- cup: left 40, top 80, right 90, bottom 140
- table: left 0, top 120, right 620, bottom 400
- cup: left 300, top 85, right 352, bottom 143
Counts: cup: 2, table: 1
Question: What is in this picture?
Answer: There are 2 cups and 1 table.

Where the things in a picture are:
- person: left 410, top 200, right 450, bottom 330
- bus: left 20, top 60, right 400, bottom 340
- person: left 455, top 205, right 490, bottom 331
- person: left 500, top 190, right 546, bottom 335
- suitcase: left 430, top 300, right 470, bottom 340
Counts: person: 3, bus: 1, suitcase: 1
Question: What do you see?
Answer: There are 3 persons, 1 bus and 1 suitcase.

Where the things in a picture are:
{places}
Counts: {counts}
Question: {request}
Answer:"""


def look_and_tell() -> Flow:
    """What a picture shows, told from the things that a detector finds in it."""
    flow = Flow(
        "Look and Tell",
        "A detector finds the things in a picture, and a text model tells what is to be seen.",
        "look-and-tell",
    )
    flow.note(
        "### Look and Tell\n"
        f"Attach a picture to a message in the **Playground** and ask *{REQUEST}* *Object Detector* finds the things in it. The "
        f"*Prompt* lists them with their counts and places, and `{INSTRUCT_MODEL}` tells what is to be seen. The "
        "detector's *Picture* output shows the boxes.\n\n"
        f"**No detector comes with this package.** `{DETECTOR}` (170 MB) is fetched from the hub at the first run. To fetch it "
        f"before: `lfx-local-runtimes pull {DETECTOR}`. Or choose another DETR, RT-DETR or YOLOS in *Object Detector*.\n\n"
        f"`{INSTRUCT_MODEL}` is very small, so the prompt is a few examples to continue. Choose a larger model for pictures with "
        "many things.\n\n"
        "It needs `pip install 'lfx-local-runtimes[vision,demo]'`\n\n"
        f"Headless: put a file `{PHOTO}` into a folder of `LOCAL_RUNTIMES_MEDIA_DIRS`, then "
        f"`lfx run flows/look_and_tell.json \"{REQUEST}\"`",
        -1, width=400,
    )  # fmt: skip
    request = flow.add(ChatInput, "picture", 0, 0.4, input_value=REQUEST)
    detector = flow.add(ObjectDetectorComponent, "things", 0.9, 0, title="Things", model_name=DETECTOR, path=PHOTO)
    places = flow.add(ParserComponent, "places", 1.8, 0, title="Places", pattern=PLACE)
    prompt = flow.add(PromptComponent, "prompt", 2.7, 0.4, template=PROMPT)
    model = flow.add(
        LocalModelComponent, "tell", 3.6, 0.2, title="Tell", model_name=INSTRUCT_MODEL, raw=True, stream=False,
        max_tokens=60, temperature=0.0, stop_sequences=["\\n"],
    )  # fmt: skip
    answer = flow.add(ChatOutput, "answer", 4.5, 0.2)
    flow.connect(request, "message", detector, "input_value")
    flow.connect(detector, "objects", places, "input_data")
    flow.connect(detector, "picture", prompt, "counts")
    flow.connect(places, "parsed_text", prompt, "places")
    flow.connect(request, "message", prompt, "request")
    flow.connect(prompt, "prompt", model, "input_value")
    flow.connect(model, "text_output", answer, "input_value")
    return flow
