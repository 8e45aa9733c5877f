"""What clients send to embeddings and rerank: the fields of the `Ask`, with the names of that API."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from typing_extensions import TypedDict

from lfx_local_runtimes.routes.access import MODEL_REF, ModelRef
from lfx_local_runtimes.routes.tasks.bodies import MAX_INPUTS, Limited
from lfx_local_runtimes.runtimes.tasks.base import TaskResult, TokenIds
from lfx_local_runtimes.runtimes.tasks.text.embedding import EmbeddingAsk, EmbeddingOverflow
from lfx_local_runtimes.runtimes.tasks.text.reading import Overflow, Text
from lfx_local_runtimes.runtimes.tasks.text.rerank import RerankAsk, RerankResult
from lfx_local_runtimes.runtimes.tasks.vision.embedding import ImageEmbeddingAsk


class Document(TypedDict):
    """A document of Cohere's form. Other fields are ignored."""

    text: Annotated[Text, Field(description="What is compared with the query.")]


_Few = Field(min_length=1, max_length=MAX_INPUTS)


class Refusing(BaseModel):
    """A base class to put before an `Ask`: too long an input is an error unless the client asks for something else."""

    overflow: Overflow = Field(
        default="error",
        description="Not OpenAI's. If a text is too long. error: the request fails. truncate: its end is not read, and "
        "`truncated` says so.",
    )


class Named(BaseModel):
    """The model, under OpenAI's name for it. The request's id is a header."""

    model_config = ConfigDict(protected_namespaces=())

    model: ModelRef = Field(description=MODEL_REF, examples=["all-MiniLM-L6-v2"])


class EmbeddingsBody(Named, Limited, EmbeddingAsk):
    """The body of embeddings. prompt, normalize, overflow and keep_alive are not OpenAI's."""

    model_config = ConfigDict(extra="ignore", alias_generator=lambda name: "input" if name == "texts" else name)

    overflow: EmbeddingOverflow = Field(
        default="error",
        description="Not OpenAI's. If a text is too long. error: the request fails. truncate: its end is not read, and "
        "`truncated` says so. chunk: the text is read in parts, and the vector is their mean.",
    )
    encoding_format: Literal["float", "base64"] | None = Field(
        default=None, description="base64 encodes little-endian float32. Default float."
    )
    user: str | None = Field(default=None, description="Accepted, not used.")

    @field_validator(
        "texts",
        mode="before",
        json_schema_input_type=Text | Annotated[list[Text], _Few] | TokenIds | Annotated[list[TokenIds], _Few],
    )
    @classmethod
    def _as_list(cls, value: object) -> object:
        one = isinstance(value, str) or (isinstance(value, list) and bool(value) and type(value[0]) in (int, float))
        return [value] if one else value


class ImageEmbeddingsBody(Named, Limited, ImageEmbeddingAsk):
    """The body of embeddings with pictures in `images`, which OpenAI does not have. `input`: texts in the same space."""

    model_config = ConfigDict(extra="ignore", alias_generator=lambda name: "input" if name == "texts" else name)

    encoding_format: Literal["float", "base64"] | None = Field(
        default=None, description="base64 encodes little-endian float32. Default float."
    )

    @field_validator("texts", mode="before", json_schema_input_type=Text | list[Text])
    @classmethod
    def _as_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value


class RerankBody(Named, Limited, Refusing, RerankAsk):
    """The body of rerank, in Jina's and Cohere's form. overflow and keep_alive are additions."""

    model_config = ConfigDict(extra="ignore")

    return_documents: bool | None = Field(default=None, description="Repeat the documents in the answer. Default true.")

    @field_validator("documents", mode="before", json_schema_input_type=Annotated[list[Text | Document], _Few])
    @classmethod
    def _as_texts(cls, value: object) -> object:
        if not isinstance(value, list):
            return value
        return [one["text"] if isinstance(one, dict) and "text" in one else one for one in value]

    def answer(self, request_id: str, result: RerankResult) -> dict[str, Any]:
        """The ranking in Jina's form."""
        rows: list[dict[str, Any]] = []
        for ranked in result.ranking:
            rows.append({"index": ranked.index, "relevance_score": ranked.score})
            if self.return_documents is not False:
                rows[-1]["document"] = {"text": self.documents[ranked.index]}
        head = {"id": f"rerank-{request_id}", "object": "list", "model": self.model, "results": rows}
        return {**head, "usage": usage_of(result), **notes_of(result)}


def usage_of(result: TaskResult) -> dict[str, int]:
    """The tokens that were read; none are generated."""
    tokens = int(result.metadata.get("tokens", 0))
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def notes_of(result: TaskResult) -> dict[str, Any]:
    """Additional fields of the answer, if there is something to say: the tokens that were cut, by input; and warnings."""
    cut, warnings = result.metadata.get("truncated"), result.metadata.get("warnings")
    return ({"truncated": dict(cut)} if cut else {}) | ({"warnings": list(warnings)} if warnings else {})
