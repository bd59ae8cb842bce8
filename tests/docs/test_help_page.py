"""The help page, to which errors on the dashboard link, is made from docs/operations.md."""

from __future__ import annotations

import ast
import re
from typing import get_args

from optimizer.reader.diagnosis import Code
from tests.support.help_page import HELP_PAGE, ROOT, render_help


def test_the_help_page_is_made_of_the_page_of_operations() -> None:
    """The help page equals the one that is made from docs/operations.md now.

    After each change of the chapter on troubleshooting, a command has to make it again.
    """
    made = render_help((ROOT / "docs" / "operations.md").read_text("utf-8"))
    assert HELP_PAGE.read_text("utf-8") == made, "run: python -m tests.support.help_page"


def test_each_diagnosis_and_each_error_has_its_entry_and_each_link_leads_to_one() -> None:
    """Each diagnosis and each error has an entry on the help page, and each link within the page leads to an entry.

    The dashboard links to entries by the code of a diagnosis, and by the name of an error.
    """
    page = HELP_PAGE.read_text("utf-8")
    entries = re.findall(r'id="([^"]+)"', page)
    assert len(entries) == len(set(entries))
    codes = {code.replace("_", "-") for code in get_args(Code)} - {"ok"}
    tree = ast.parse((ROOT / "optimizer" / "errors.py").read_text("utf-8"))
    errors = {one.name for one in tree.body if isinstance(one, ast.ClassDef)} - {"RollingError", "SourceError"}
    assert codes | errors <= set(entries)
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(entries)
    assert set(re.findall(r'href="([^"#]+)"', page)) == {"../", "icon.svg", "dashboard.css"}
