"""Regular expressions for bytes of JSON, shared by the pruner and the decoder.

All quantifiers are possessive, so that no input makes the engine backtrack: time is linear.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["FLAT", "GAP", "SKIPPED", "SKIPPED_LEVELS", "SPACE", "STRING", "UNIT", "compiled"]

SPACE: Final = b" \t\n\r"
GAP: Final = rb"[" + SPACE + rb"]*+"
STRING: Final = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
# Anything without brackets, and whole strings.
FLAT: Final = rb'[^"{}\[\]]*+(?:' + STRING + rb'[^"{}\[\]]*+)*+'
_LEAF = rb"(?:\{" + FLAT + rb"\}|\[" + FLAT + rb"\])"
_BRANCH_BODY = FLAT + rb"(?:" + _LEAF + FLAT + rb")*+"
_BRANCH = rb"(?:\{" + _BRANCH_BODY + rb"\}|\[" + _BRANCH_BODY + rb"\])"
# Containers of up to two levels in one match: most of a rolling file is lists of flat objects.
SKIPPED: Final = FLAT + rb"(?:" + _BRANCH + FLAT + rb")*+"
SKIPPED_LEVELS: Final = 2
# Levels inside a pruned record: objects on the path of a mapped field. A batch of records with more comes as fragments.
UNIT_LEVELS: Final = 4
UNIT: Final = rb"\{" + FLAT + UNIT_LEVELS * (rb"(?:[{\[]" + FLAT) + UNIT_LEVELS * (rb"[}\]]" + FLAT + rb")*+") + rb"\}"


def compiled(pattern: bytes) -> re.Pattern[bytes]:
    """Compile a pattern in which `.` matches every byte."""
    return re.compile(pattern, re.DOTALL)
