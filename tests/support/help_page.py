"""Make, from docs/operations.md, the page to which errors of the dashboard link: `python -m tests.support.help_page`.

The service itself serves the page, so that it fits the release and needs no other host. It has the chapter on
troubleshooting only: links within the chapter stay links, all other links become text.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Final

from markdown_it import MarkdownIt
from markdown_it.token import Token

__all__ = ["HELP_PAGE", "render_help"]

ROOT: Final = Path(__file__).parents[2]
CHAPTER: Final = "Troubleshooting"
HELP_PAGE: Final = ROOT / "optimizer" / "web" / "static" / "help.html"

_PAGE: Final = """\
<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <meta name="color-scheme" content="light dark">
  <meta name="robots" content="noindex">
  <title>Troubleshooting – Rolling Optimizer</title>
  <link rel="icon" type="image/svg+xml" href="icon.svg">
  <link rel="stylesheet" href="dashboard.css">
</head>
<body class="help">
<!-- Made of docs/operations.md by: python -m tests.support.help_page -->
<main>
<p><a href="../">Dashboard</a></p>
{body}</main>
</body>
</html>
"""


def main() -> None:
    """Write the page."""
    HELP_PAGE.write_text(render_help((ROOT / "docs" / "operations.md").read_text("utf-8")), "utf-8")


def render_help(text: str) -> str:
    """Return the page made from a text that has the chapter.

    Each heading has its anchor as in the site, and each error in the table of errors its name.
    """
    match = re.search(rf"^## {CHAPTER}\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert match, f"docs/operations.md has no chapter {CHAPTER!r}; name here the one that explains errors"
    parser = MarkdownIt("commonmark").enable("table")
    # One level up, since the chapter becomes a page.
    tokens = parser.parse(re.sub("^##", "#", match[0], flags=re.MULTILINE))
    titles = [(one, _slug(text.content)) for one, text in pairwise(tokens) if one.type == "heading_open"]
    for heading, anchor in titles:
        heading.attrSet("id", anchor)
    for row, cell, content in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if content.type == "inline":
            children = content.children or []
            # Errors begin the first cell of a row.
            is_first = (row.type, cell.type) == ("tr_open", "td_open")
            is_named = is_first and bool(children) and children[0].type == "code_inline"
            _finish(children, {anchor for _, anchor in titles}, has_names=is_named)
    return _PAGE.format(body=parser.renderer.render(tokens, parser.options, {}))


def _finish(children: list[Token], anchors: set[str], *, has_names: bool) -> None:
    """Give errors their anchors, and replace links that lead out of the chapter by their text."""
    leads_out = False
    for child in children:
        if has_names and child.type == "code_inline" and re.fullmatch(r"(?:[A-Z][a-z]+)+", child.content):
            child.attrSet("id", child.content)
        if child.type == "link_open":
            leads_out = str(child.attrGet("href")).removeprefix("#") not in anchors
        if leads_out and child.type in ("link_open", "link_close"):
            child.tag, child.attrs = "span", {}


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


if __name__ == "__main__":
    main()
