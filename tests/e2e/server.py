"""A `firelet serve` process and what tests do with it: boto3 clients, functions from source text, invocations, the CLI."""

import base64
import io
import itertools
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import zipfile
from pathlib import Path

import boto3
from botocore.config import Config

ROOT = Path(__file__).resolve().parents[2]
ROLE = "arn:aws:iam::000000000000:role/test"
REGION = "us-east-1"
START_SECONDS = 60
_names = itertools.count(1)


def binary():
    """The firelet binary under test: $FIRELET_BIN, else the debug build of this work tree."""
    return os.environ.get("FIRELET_BIN") or str(ROOT / "target/debug/firelet")


def eventually(check, seconds=30, what="the condition"):
    """Calls `check` until it returns something true, which is returned; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        result = check()
        if result:
            return result
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds} s (last: {result!r})"
        time.sleep(0.02)


def zipped(files):
    """A zip, as bytes, of {name: text, bytes or (mode, text)}; names starting with `bootstrap` or `wrapper` are
    executable where no mode is given."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name, (2024, 1, 1, 0, 0, 0))
            executable = Path(name).name.startswith(("bootstrap", "wrapper"))
            mode, content = content if isinstance(content, tuple) else (0o755 if executable else 0o644, content)
            info.external_attr = (0o100000 | mode) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return out.getvalue()


def folder_files(folder, prefix=""):
    """{name: bytes} of every file below `folder`, for `zipped`."""
    folder = Path(folder)
    return {
        prefix + str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


class Answer:
    """What Invoke answered: `payload` (JSON), `error` (X-Amz-Function-Error or None), `log` (decoded tail), `request_id`."""

    def __init__(self, response):
        self.raw = response["Payload"].read()
        self.payload = json.loads(self.raw) if self.raw else None
        self.error = response.get("FunctionError")
        self.log = base64.b64decode(response.get("LogResult", "")).decode()
        self.version = response.get("ExecutedVersion")
        self.status = response["StatusCode"]
        self.request_id = response["ResponseMetadata"]["RequestId"]

    def ok(self):
        """The payload of an invocation that must not have failed."""
        assert self.error is None, f"{self.error}: {self.raw.decode()}\n{self.log}"
        return self.payload


class Function:
    """A deployed function."""

    def __init__(self, server, name):
        self.server, self.name = server, name
        self.group = f"/aws/lambda/{name}"

    def call(self, event=None, **arguments):
        """Invoke with the log's tail; returns an Answer."""
        payload = event if isinstance(event, bytes) else json.dumps(event if event is not None else {}).encode()
        arguments.setdefault("LogType", "Tail")
        return Answer(self.server.lambda_.invoke(FunctionName=self.name, Payload=payload, **arguments))

    def __call__(self, event=None, **arguments):
        """Invoke; returns the payload of a successful invocation."""
        return self.call(event, **arguments).ok()

    def parallel(self, count, event=None):
        """`count` invocations started together; their Answers."""
        barrier, answers = threading.Barrier(count), queue.Queue()

        def one():
            barrier.wait()
            try:
                answers.put(self.call(event))
            except Exception as error:  # noqa: BLE001 - handed to the caller, who raises it
                answers.put(error)

        threads = [threading.Thread(target=one) for _ in range(count)]
        for thread in threads:
            thread.start()
        results = [answers.get() for _ in threads]
        for thread in threads:
            thread.join()
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results

    def log_messages(self):
        """All messages of the function's log group, oldest first; none where the group is not there yet."""
        pages = self.server.logs.get_paginator("filter_log_events").paginate(logGroupName=self.group)
        try:
            return [event["message"] for page in pages for event in page["events"]]
        except self.server.logs.exceptions.ResourceNotFoundException:
            return []

    def wait_for_log(self, pattern):
        """Waits until a log message matches the regular expression; returns the match."""

        def found():
            return next(filter(None, (re.search(pattern, message) for message in self.log_messages())), None)

        return eventually(found, what=f"a log message like {pattern!r}")


def runtime_directories():
    """Arguments that name the Node.js releases from npm, where scripts/test has installed them."""
    modules = os.environ.get("FIRELET_TEST_NODE_MODULES")
    releases = [Path(modules, name) for name in ("node-20", "node-22")] if modules else []
    return [part for release in releases if release.exists() for part in ("--runtime-dir", str(release))]


class Server:
    """A running `firelet serve` on port 0. `close` stops it; a data directory that was given is kept."""

    def __init__(self, *arguments, data_dir=None, environment=None):
        self.own_data = data_dir is None
        self.data_dir = Path(data_dir or tempfile.mkdtemp(prefix="firelet-e2e-"))
        self.log_path = self.data_dir.with_name(self.data_dir.name + ".log")
        # What the shell of whoever runs the tests says of AWS is nothing that they shall depend on.
        plain = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        self.environment = {**plain, **(environment or {})}
        log = open(self.log_path, "ab")
        self.process = subprocess.Popen(
            [
                *(binary(), "serve", "--listen", "127.0.0.1:0", "--data-dir", str(self.data_dir)),
                *runtime_directories(),
                *arguments,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=self.environment,
            text=True,
        )
        log.close()
        self.output, ready = [], queue.Queue()

        def read():
            for line in self.process.stdout:
                self.output.append(line)
                found = re.search(r"listening on (http://\S+)", line)
                if found:
                    ready.put(found[1])
            ready.put(None)

        threading.Thread(target=read, daemon=True).start()
        try:
            self.url = ready.get(timeout=START_SECONDS)
            assert self.url, f"firelet ended with {self.process.wait()} before it listened"
        except (queue.Empty, AssertionError) as error:
            self.process.kill()
            raise AssertionError(f"{error!r}\n{''.join(self.output)}\n{self.log()[-5000:]}") from None

        session = boto3.Session("test", "test", region_name=REGION)
        options = Config(
            retries={"total_max_attempts": 1},
            read_timeout=120,
            max_pool_connections=200,
            parameter_validation=False,
        )

        def client(service):
            return session.client(service, endpoint_url=self.url, config=options)

        self.lambda_, self.logs, self.iam, self.sts = map(client, ("lambda", "logs", "iam", "sts"))

    def log(self):
        """What the server has written to standard error."""
        return self.log_path.read_text(errors="replace")

    def deploy(self, files, runtime="python3.12", handler="app.handler", name=None, variables=None, **settings):
        """Creates a function from source text (as app.py) or {name: content}, waits until it is active."""
        files = {"app.py": files} if isinstance(files, str) else files
        name = name or f"test-{next(_names)}"
        if variables is not None:
            settings["Environment"] = {"Variables": variables}
        settings.setdefault("Timeout", 30)
        settings.setdefault("MemorySize", 256)
        self.lambda_.create_function(
            FunctionName=name, Runtime=runtime, Handler=handler, Role=ROLE, Code={"ZipFile": zipped(files)}, **settings
        )
        self.lambda_.get_waiter("function_active_v2").wait(FunctionName=name, WaiterConfig={"Delay": 0.05})
        return Function(self, name)

    def tool_environment(self):
        """The environment in which the AWS CLI and the firelet CLI reach this server."""
        return {
            **self.environment,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_PAGER": "",
        }

    def run(self, *command, **options):
        """Runs a command in `tool_environment`; returns the completed process with its text."""
        options.setdefault("timeout", 120)
        return subprocess.run(
            [str(part) for part in command],
            env=self.tool_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            **options,
        )

    def aws(self, *arguments):
        """The AWS CLI; returns the JSON that it prints, or None for nothing."""
        done = self.run("aws", *arguments, "--output", "json")
        assert done.returncode == 0, f"aws {arguments} ended with {done.returncode}: {done.stderr}"
        return json.loads(done.stdout) if done.stdout.strip() else None

    def firelet(self, *arguments, **options):
        """The firelet CLI against this server; returns the completed process."""
        return self.run(binary(), *arguments, **options)

    def descendants(self):
        """The process ids below the server's own."""
        children = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                pid, rest = stat.parent.name, stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(rest[1]), []).append(int(pid))
        found, pending = [], [self.process.pid]
        while pending:
            pending += (below := children.get(pending.pop(), []))
            found += below
        return found

    def stop(self, how=signal.SIGTERM):
        """Signals the server and waits for its end; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"firelet did not end within 60 s of {how!r}\n{self.log()[-5000:]}") from None

    def close(self):
        self.stop()
        if self.own_data:
            shutil.rmtree(self.data_dir, ignore_errors=True)
            self.log_path.unlink(missing_ok=True)
