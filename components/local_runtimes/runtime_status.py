"""The Runtime Status node."""

from lfx.custom.custom_component.component import Component
from lfx.io import BoolInput, Output
from lfx.schema.dataframe import DataFrame

from lfx_local_runtimes.nodes import after_input, memory_rows, model_rows


class RuntimeStatusComponent(Component):
    """Local models and the memory they take, as tables."""

    display_name = "Runtime Status"
    description = "Local models and the memory they take, as tables."
    icon = "Activity"
    name = "RuntimeStatus"
    documentation = "/api/v1/runtime/manual#the-nodes"
    metadata = {"keywords": ["memory", "models", "llama.cpp", "transformers", "onnx", "offline"]}

    inputs = [
        BoolInput(
            name="loaded_only",
            display_name="Loaded Only",
            info="Leave out models that are known but not in memory.",
            value=False,
        ),
        after_input(),
    ]

    outputs = [
        Output(display_name="Models", name="models", method="models"),
        Output(display_name="Memory", name="memory", method="memory"),
    ]

    async def models(self) -> DataFrame:
        """One row per model; sizes in MiB."""
        rows = await model_rows(loaded_only=self.loaded_only)
        self.status = f"{len(rows)} models"
        return DataFrame(rows)

    async def memory(self) -> DataFrame:
        """One row per device; sizes in MiB."""
        return DataFrame(await memory_rows())
