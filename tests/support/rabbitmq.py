"""A real RabbitMQ for tests: the server of the distribution as a child process, with all files in its own directory.

Debian's wrapper in /usr/sbin changes to the user and the directory of the service; the script behind it does not. Both
need Erlang's port mapper (epmd) and would leave one running, so this server has its own port mapper, on a port of its
own.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Final

import amqp

from tests.support.ports import free_port
from tests.support.redis_servers import wait_until

__all__ = ["RabbitServer", "rabbitmq_executable"]

SERVER: Final = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
START_S: Final = 60.0
CONFIG: Final = "loopback_users = none\ndisk_free_limit.absolute = 1MB\n"


def rabbitmq_executable() -> Path:
    """Find the server's start script.

    Raises:
        FileNotFoundError: The script or the port mapper is not installed.
    """
    if not SERVER.exists() or shutil.which("epmd") is None:
        raise FileNotFoundError("no RabbitMQ here: apt-get install --no-install-recommends rabbitmq-server")
    return SERVER


class RabbitServer:
    """One server; `url` is the URL of this broker for the user guest."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self._directory = directory
        self._port = free_port()
        self._processes: list[subprocess.Popen[bytes]] = []
        self.url = f"amqp://guest:guest@127.0.0.1:{self._port}//"

    def start(self) -> None:
        """Start the server and wait until it responds (about 4 s)."""
        (self._directory / "rabbitmq.conf").write_text(CONFIG)
        mapper_port = free_port()
        own = {
            "HOME": str(self._directory),  # for Erlang's cookie
            "ERL_EPMD_PORT": str(mapper_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_CONFIG_FILE": str(self._directory / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self._directory / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._directory / "enabled_plugins"),
            "RABBITMQ_FEATURE_FLAGS_FILE": str(self._directory / "feature_flags"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self._directory / "generated"),
            "RABBITMQ_MNESIA_BASE": str(self._directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self._directory / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(self._directory / "pid"),
            "RABBITMQ_NODENAME": f"test{self._port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RUNNING_UNDER_SYSTEMD": "true",  # the script then becomes the server, and does not stay as its parent
        }
        with (self._directory / "printed").open("wb") as printed:
            for command in (["epmd", "-port", str(mapper_port)], [str(rabbitmq_executable())]):
                process = subprocess.Popen(
                    command, env=os.environ | own, stdout=printed, stderr=subprocess.STDOUT, start_new_session=True
                )
                self._processes.append(process)
        wait_until(self._answers, limit_s=START_S, what="rabbitmq")

    def kill(self) -> None:
        """Kill the server and its port mapper, as a crash would."""
        for process in reversed(self._processes):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._processes.clear()

    def _answers(self) -> bool:
        ended = [process.returncode for process in self._processes if process.poll() is not None]
        assert not ended, f"rabbitmq ended with {ended}:\n{(self._directory / 'printed').read_text()[-4000:]}"
        try:
            with amqp.Connection(f"127.0.0.1:{self._port}", connect_timeout=5):
                return True
        except (amqp.exceptions.AMQPError, OSError):
            return False
