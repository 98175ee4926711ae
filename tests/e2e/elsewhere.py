"""Services that Firelet calls, kept by a moto server: S3, IAM, STS and Logs over HTTP, in a process of its own."""

import os
import re
import subprocess
import sys
import threading

import boto3
from botocore.config import Config
from server import REGION


class Elsewhere:
    """A moto server on a free port. `variables` go into its environment."""

    def __init__(self, scheme="http", arguments=(), **variables):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **variables},
            text=True,
        )
        self.output = []
        for line in self.process.stdout:
            self.output.append(line)
            if found := re.search(r"Running on https?://127\.0\.0\.1:(\d+)", line):
                break
        else:
            raise AssertionError(f"moto ended with {self.process.wait()}: {''.join(self.output)}")
        self.url = f"{scheme}://127.0.0.1:{found[1]}"
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        self.output.extend(self.process.stdout)

    def requests(self):
        """The lines of the server's log, one a request."""
        return [line for line in self.output if '" 2' in line or '" 4' in line]

    def client(self, service, key="test", secret="test", **options):
        session = boto3.Session(key, secret, region_name=REGION)
        config = Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"})
        return session.client(service, endpoint_url=self.url, config=config, **options)

    def close(self):
        self.process.kill()
        self.process.wait()
