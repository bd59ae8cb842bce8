"""Safe defaults for Flower when it is started as `celery -A tasks flower`.

Flower's API runs tasks. So by default it listens on loopback only, and asks for a password: the one in
`FLOWER_BASIC_AUTH` (user:password), or one that is generated for this process and printed. Flower reads its `FLOWER_*`
variables after it has loaded the app, so the app can set defaults wherever Flower is started; flags override variables.

Kubernetes sets `FLOWER_PORT=tcp://...` for a Service named `flower`, and Flower would end with an error.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import MutableMapping

from optimizer.config.environment import without_service_links

__all__ = ["close_flower"]

# FLOWER_AUTH and --auth are logins by OAuth.
AUTH_VARIABLES = ("FLOWER_BASIC_AUTH", "FLOWER_AUTH")
AUTH_FLAGS = ("--basic-auth", "--basic_auth", "--auth")


def close_flower(environ: MutableMapping[str, str], arguments: list[str]) -> None:
    """Set defaults of Flower's variables, if neither the variable nor the flag is given."""
    for name in environ.keys() - without_service_links(environ).keys():
        if name.startswith("FLOWER_"):
            del environ[name]
    environ.setdefault("FLOWER_ADDRESS", "127.0.0.1")
    environ.setdefault("FLOWER_MAX_TASKS", "5000")  # by default it keeps 100,000 tasks in memory
    by_variable = any(environ.get(name) for name in AUTH_VARIABLES)
    by_flag = any(word.startswith(AUTH_FLAGS) for word in arguments)
    if not (by_variable or by_flag):
        password = secrets.token_urlsafe(12)
        environ["FLOWER_BASIC_AUTH"] = f"admin:{password}"
        print(
            f"Flower: FLOWER_BASIC_AUTH is not set; log in as admin:{password} until Flower stops",
            file=sys.stderr,
            flush=True,
        )
