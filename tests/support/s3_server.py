"""An S3 server for tests: moto's, as a process on a free port of the loopback, with one bucket."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import fsspec

from optimizer.storage.location import Url
from tests.support.ports import free_port
from tests.support.redis_servers import wait_until

__all__ = ["S3Server"]


class S3Server:
    """One server, whose objects are gone when it ends."""

    def __init__(self) -> None:
        self.port = free_port()
        # One bucket name per server, since a process keeps using the server where it first used a bucket.
        self.bucket = Url(f"s3://rolling-{self.port}")
        self.environ = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "made-up",
            "AWS_SECRET_ACCESS_KEY": "made-up",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server, wait until it responds, and make the bucket."""
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(self._answers, what="moto")
        request = urllib.request.Request(f"{self.environ['AWS_ENDPOINT_URL']}/{self.bucket.name}", method="PUT")
        request.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=made-up/20260101/us-east-1/s3/aws4_request")
        urllib.request.urlopen(request, timeout=20).close()

    def kill(self) -> None:
        """Kill the server."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def refuse_strangers(self) -> None:
        """Make the server deny every access from now on."""
        request = urllib.request.Request(f"{self.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth", method="POST")
        request.add_header("Content-Type", "text/plain")
        urllib.request.urlopen(request, b"0", timeout=20).close()

    @property
    def behind(self) -> Any:
        """A file system separate from the program's, to prepare and inspect objects."""
        return fsspec.filesystem(
            "s3",
            endpoint_url=self.environ["AWS_ENDPOINT_URL"],
            key="made-up",
            secret="made-up",
            client_kwargs={"region_name": "us-east-1"},
            use_listings_cache=False,
        )

    def put(self, url: Url, content: bytes | Path) -> None:
        """Put an object."""
        self.behind.pipe_file(url.text, content if isinstance(content, bytes) else content.read_bytes())

    def names(self, url: Url) -> set[str]:
        """The names of the objects below a URL, relative to it."""
        prefix = url.text.partition("://")[2] + "/"
        return {name.removeprefix(prefix) for name in self.behind.find(url.text)}

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.environ['AWS_ENDPOINT_URL']}/moto-api/", timeout=5).close()
        except OSError:
            return False
        return True
