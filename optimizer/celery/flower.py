"""What Flower is by default when it is started as `celery -A tasks flower`: closed.

Whoever may call Flower's API may run tasks. So it answers on loopback only, and asks for a password: the one in
`FLOWER_BASIC_AUTH` (user:password), or one made up for this process and printed. Flower reads its `FLOWER_*` variables
after it has loaded the app, so they can be given defaults here, wherever it is started; flags win over variables.

Kubernetes sets `FLOWER_PORT=tcp://...` beside a Service of the name `flower`; Flower would end of it.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import MutableMapping

from optimizer.config.environment import without_service_links

__all__ = ["close_flower"]

# Other ways to log in, by OAuth, that somebody may have chosen.
AUTH_VARIABLES = ("FLOWER_BASIC_AUTH", "FLOWER_AUTH")
AUTH_FLAGS = ("--basic-auth", "--basic_auth", "--auth")


def close_flower(environ: MutableMapping[str, str], arguments: list[str]) -> None:
    """Give Flower's variables their defaults, where neither a variable nor a flag says otherwise."""
    for name in environ.keys() - without_service_links(environ).keys():
        if name.startswith("FLOWER_"):
            del environ[name]
    environ.setdefault("FLOWER_ADDRESS", "127.0.0.1")
    environ.setdefault("FLOWER_MAX_TASKS", "5000")  # it keeps every task that it has seen, by default 100,000
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
