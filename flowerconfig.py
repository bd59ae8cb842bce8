"""Flower's settings; read by `celery -A tasks flower` in this directory. flags and `FLOWER_*` variables win over it.

Whoever may call Flower's API may run tasks. So it answers on loopback only, and asks for a password: the one in
`FLOWER_BASIC_AUTH` (user:password), or one made up for this process and printed.
"""

from __future__ import annotations

import os
import secrets
import sys

# Flower lets this file win over its variables, so each value stands back by itself.
if "FLOWER_ADDRESS" not in os.environ:
    address = "127.0.0.1"
if "FLOWER_MAX_TASKS" not in os.environ:
    max_tasks = 5_000  # Flower keeps every task that it has seen, by default 100,000
if not os.environ.get("FLOWER_BASIC_AUTH"):
    _password = secrets.token_urlsafe(12)
    basic_auth = [f"admin:{_password}"]
    print(f"Flower: FLOWER_BASIC_AUTH is not set; log in as admin:{_password} until Flower stops", file=sys.stderr)
