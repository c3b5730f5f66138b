"""Assemble a self-contained HTML page from its sections."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from xml.etree.ElementTree import Element, tostring

from cvbatch.core.redaction import redact
from cvbatch.core.version import __version__
from cvbatch.report.html import Section, el, paragraph, shorten


def render_page(title: str, source: str, kind: str, sections: Sequence[Section]) -> bytes:
    """Return a self-contained HTML page.

    Style and script are embedded. The content security policy allows them by their hash and blocks
    everything else, so a page opened from an untrusted archive makes no request.

    Args:
        title: of the page.
        source: URI of the folder, shown without credentials.
        kind: of the job, shown above the title.
        sections: in order.
    """
    files = resources.files("cvbatch.report")
    style, script = (files.joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    menu = el("ul")
    for section in sections:
        menu.append(el("li", {}, el("a", {"href": f"#{section.key}"}, section.title)))
    header = el(
        "header",
        {"class": "top"},
        el("p", {"class": "kind"}, kind),
        el("h1", {}, title),
        el("p", {"class": "where"}, el("code", {}, shorten(redact(source), 400))),
    )
    main = el("main", {"id": "main"}, *map(_section_element, sections))
    text = f"Written by cvbatch {__version__}. This page makes no requests."
    footer = el("footer", {}, paragraph(text))
    body = el(
        "body",
        {"class": "show-boxes show-tp show-fp show-miss show-by-outcome"},
        el("a", {"class": "skip", "href": "#main"}, "Skip to content"),
        header,
        el("nav", {"aria-label": "Sections"}, menu),
        main,
        footer,
        el("script", {}, script),
    )
    page = el("html", {"lang": "en"}, _head(title, style, script), body)
    html = tostring(page, encoding="unicode", method="html")
    return f"<!doctype html>\n{html}\n".encode("utf-8", "replace")


def _head(title: str, style: str, script: str) -> Element:
    """Return the head of the page, with the content security policy and the style."""
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; "
        f"script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'"
    )
    return el(
        "head",
        {},
        el("meta", {"charset": "utf-8"}),
        el("meta", {"http-equiv": "Content-Security-Policy", "content": policy}),
        el("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        el("meta", {"name": "color-scheme", "content": "light dark"}),
        el("title", {}, f"{title} · cvbatch"),
        el("style", {}, style),
    )


def _section_element(section: Section) -> Element:
    title_id = f"{section.key}-title"
    heading = el("h2", {"id": title_id}, section.title)
    attributes = {"id": section.key, "aria-labelledby": title_id}
    return el("section", attributes, heading, *section.body)


def _hash(text: str) -> str:
    """Return the hash source of an inline style or script for a content security policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
