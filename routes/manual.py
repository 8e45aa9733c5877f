"""The manual as a page: what the nodes' documentation button and the provider's page open."""

import itertools
import re
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, metadata
from typing import TYPE_CHECKING

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

if TYPE_CHECKING:
    from markdown_it.token import Token

DISTRIBUTION = "lfx-local-runtimes"
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.3rem .6rem;text-align:left;vertical-align:top}"
    "pre,code{background:#f4f4f4;border-radius:4px}code{padding:.1rem .3rem}pre{padding:.8rem;overflow-x:auto}"
)

router = APIRouter()


@router.get("/manual", include_in_schema=False)
def manual() -> HTMLResponse:
    """The README of the installed version. It is open to everybody: a browser sends no key."""
    return HTMLResponse(page())


@lru_cache(maxsize=1)
def page() -> str:
    """The README as HTML. Every heading has an id, as on the code hosts: "The nodes" has `the-nodes`."""
    from markdown_it import MarkdownIt

    try:
        text = metadata(DISTRIBUTION)["Description"]
    except PackageNotFoundError:
        text = "# lfx-local-runtimes\n\nThe package is not installed, so its manual is not here."
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(re.sub(r"^!\[.*?\]\(.*?\)$", "", text, flags=re.MULTILINE))  # pictures are not installed
    for heading, inline in itertools.pairwise(tokens):
        if heading.type == "heading_open":
            heading.attrSet("id", re.sub(r"[^a-z0-9]+", "-", inline.content.lower()).strip("-"))
    for token in tokens:
        if token.type == "inline":
            token.children = _without_links_to_files(token.children or [])
    body = markdown.renderer.render(tokens, markdown.options, {})
    return f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{DISTRIBUTION}</title><style>{_STYLE}</style>{body}</html>"


def _without_links_to_files(tokens: "list[Token]") -> "list[Token]":
    """What a line consists of, with the text of a link in place of a link to a file of the repository: it is not installed."""
    kept: list[Token] = []
    inside = False
    for token in tokens:
        if token.type == "link_open":
            inside = not str(token.attrGet("href")).startswith(("#", "http://", "https://"))
        if not inside or token.type not in ("link_open", "link_close"):
            kept.append(token)
    return kept
