"""The process that renders chat templates for `template_sandbox`: standard library and Jinja only.

It is confined, as a model's process is: a template that got out of Jinja's sandbox could read Python's own files, and no
other. The first frame out says that it is ready. Then each request gets one answer with a `text`, a `refusal` (the template's
own `raise_exception`) or an `error`.
"""

import faulthandler
import json
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from lfx_local_runtimes.runtimes.processes.confinement import Policy, confine
from lfx_local_runtimes.runtimes.processes.frames import Frame
from lfx_local_runtimes.runtimes.processes.inside import Link

MEMORY_LIMIT = 512 * 2**20
"""Bytes of address space, where the operating system can hold a process to it."""

MESSAGE_CHARS = 1000


class Refusal(jinja2.TemplateError):
    """What a template says with `raise_exception`."""


class OutputLimitError(Exception):
    """The text grew past its limit."""


class Environment(ImmutableSandboxedEnvironment):
    """The sandbox, which fails at an unsafe attribute at once; Jinja's own renders it as nothing."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        """Raises SecurityError."""
        raise SecurityError(f"access to attribute {attribute!r} of {type(obj).__name__!r} object is unsafe.")


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %} … {% endgeneration %}` marks an assistant's text for training; here it is just its content."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Parser) -> list[jinja2.nodes.Node]:
        """The body in place of the tag."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class GuardedNamespace(Namespace):
    """`namespace()` without names that begin with an underscore, which lead into the interpreter."""

    def __init__(*args: Any, **values: Any) -> None:  # `namespace(self=…)` is a legal call
        self, *rest = args
        attributes = dict(*rest, **values)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace cannot have the attribute {name!r}.")


def _make_dict(*args: Any, **values: Any) -> dict[Any, Any]:
    return dict(*args, **values)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As chat templates expect it: Jinja's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise Refusal(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def make_environment() -> Environment:
    """The environment chat templates are written for (that of transformers), in the sandbox."""
    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, GenerationTag])
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_make_dict, namespace=GuardedNamespace
    )
    return environment


def make_renderer() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The answer to one request: `source`, `variables`, `max_chars`."""
    compiled = lru_cache(maxsize=32)(make_environment().from_string)

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        try:
            template = compiled(request["source"])
            variables = request["variables"]
            return {"text": "" if variables is None else _render(template, variables, request["max_chars"])}
        except Refusal as refusal:
            return {"refusal": str(refusal)[:MESSAGE_CHARS]}
        except Exception as error:  # noqa: BLE001 - a template can raise anything
            return {"error": _describe(error)[:MESSAGE_CHARS]}

    return answer


def _describe(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "it needs too much memory"
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"line {error.lineno}: {error.message}"
    return f"{type(error).__name__}: {error}"


def _render(template: jinja2.Template, variables: dict[str, Any], max_chars: int) -> str:
    pieces, size = [], 0
    for piece in template.generate(**variables):
        size += len(piece)
        if size > max_chars:
            raise OutputLimitError(f"the text is longer than {max_chars:,} characters")
        pieces.append(piece)
    return "".join(pieces)


def _limit_memory() -> None:
    with suppress(ImportError, OSError, ValueError):  # Windows has no such limit, macOS refuses it
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))


def _sendable(answer: dict[str, Any]) -> dict[str, Any]:
    """A template can write half of a surrogate pair; no tokenizer takes one."""
    return {name: value.encode("utf-8", "replace").decode() for name, value in answer.items()}


def main(link: Link) -> None:
    """Answer requests until there are no more."""
    _limit_memory()
    answer = make_renderer()
    confine(Policy(memory=MEMORY_LIMIT))
    link.send(Frame({"ready": True}))
    while (request := link.receive()) is not None:
        # The parent keeps the time. This is for a parent that died where the kernel does not end its children.
        faulthandler.dump_traceback_later(request.header["abandon_s"], exit=True)
        reply = answer(request.header)
        faulthandler.cancel_dump_traceback_later()
        link.send(Frame(_sendable(reply)))
