"""A `firelet serve` process in a control group of choice, and what the checks do with it."""

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import threading
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from machine import PATIENCE, USER, eventually, processes

PROGRAM = "/lab/firelet"
FUNCTION = Path(__file__).parent / "function/app.py"
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin", "LC_ALL": "C.UTF-8", "FIRELET_LOG": "info,sandbox=debug,vmm=debug"}
# What microVMs are made of, where the lab has it.
ENVIRONMENT |= {name: value for name, value in os.environ.items() if name.startswith("FIRELET_GUEST_")}


def firelet(*arguments, endpoint=None, place=None):
    """Runs a `firelet` command, in `place` if one is given; its standard output."""
    done = subprocess.run(
        [PROGRAM, *arguments],
        env=ENVIRONMENT | ({"AWS_ENDPOINT_URL": endpoint} if endpoint else {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        preexec_fn=place and place.enter,
    )
    assert done.returncode == 0, f"firelet {arguments[0]} ended with {done.returncode}: {done.stderr}{done.stdout}"
    return done.stdout


class Answer:
    """What Invoke answered."""

    def __init__(self, response):
        self.tail = base64.b64decode(response.headers.get("X-Amz-Log-Result", "")).decode()
        self.error = response.headers.get("X-Amz-Function-Error")
        self.payload = json.loads(response.read() or b"null")

    def ok(self):
        """The payload of an invocation that must not have failed."""
        assert self.error is None, f"{self.error}: {self.payload}"
        return self.payload


class Server:
    """Starts the server and waits until it listens."""

    def __init__(self, place, data_dir, *arguments):
        self.place = place
        self.out, self.log = data_dir.with_suffix(".out"), data_dir.with_suffix(".log")
        if not data_dir.exists():
            data_dir.mkdir()
            os.chown(data_dir, *(USER, USER) if place.user else (0, 0))
        place.make()
        command = [PROGRAM, "serve", "--listen", "127.0.0.1:0", "--data-dir", str(data_dir), *arguments]
        with open(self.out, "w") as out, open(self.log, "a") as log:
            self.process = subprocess.Popen(
                command, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=out, stderr=log, preexec_fn=place.enter
            )
        lines = eventually(lambda: self.process.poll() is not None or self.out.read_text().splitlines(), "a start")
        assert lines is not True, f"the server ended with status {self.process.returncode}"
        self.url = lines[0].removeprefix("listening on ")

    def request(self, method, path, body=None, headers={}):
        """One request to the API; HTTP errors are raised with what the server said."""
        request = urllib.request.Request(self.url + path, data=body, method=method, headers=headers)
        try:
            return urllib.request.urlopen(request, timeout=4 * PATIENCE)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error} {error.read().decode()}") from error

    def publish_layer(self, name, files):
        """Publishes a layer of `files` ({name: (text, mode)}); the ARN of its version."""
        content = json.dumps({"Content": {"ZipFile": packed(files)}}).encode()
        return json.load(self.request("POST", f"/2018-10-31/layers/{name}/versions", content))["LayerVersionArn"]

    def deploy(self, name, runtime, memory, timeout=PATIENCE, code=FUNCTION, files=None, layers=(), **more):
        """Creates a function, of the checks' code unless `files` ({name: (text, mode)}) are given, and waits until it is
        active."""
        settings = {
            "FunctionName": name,
            "Runtime": runtime,
            "Handler": "app.handler",
            "Role": "arn:aws:iam::000000000000:role/lab",
            "MemorySize": memory,
            "Timeout": timeout,
            "Code": {"ZipFile": packed(files or {"app.py": (code.read_text(), 0o644)})},
            "Layers": list(layers),
            **more,
        }
        self.request("POST", "/2015-03-31/functions", json.dumps(settings).encode())
        state = lambda: json.load(self.request("GET", f"/2015-03-31/functions/{name}/configuration"))["State"]  # noqa: E731
        eventually(lambda: state() == "Active", f"{name} active")

    def publish(self, name, seconds=4 * PATIENCE):
        """Publishes a version and waits until it is no longer pending; the version as it is then."""
        number = json.load(self.request("POST", f"/2015-03-31/functions/{name}/versions", b"{}"))["Version"]
        shown = lambda: self.version(name, number)  # noqa: E731
        return eventually(lambda: shown()["State"] != "Pending" and shown(), f"version {number} of {name}", seconds)

    def version(self, name, number):
        """A version as the API shows it."""
        return json.load(self.request("GET", f"/2015-03-31/functions/{name}/configuration?Qualifier={number}"))

    def invoke(self, name, /, tail=False, qualifier=None, **event):
        """Invokes through the API, asking for the end of the log if `tail` is set."""
        headers = {"X-Amz-Log-Type": "Tail"} if tail else {}
        path = f"/2015-03-31/functions/{name}/invocations" + (f"?Qualifier={qualifier}" if qualifier else "")
        return Answer(self.request("POST", path, json.dumps(event).encode(), headers))

    def events(self, group):
        """All events of a log group, in order."""
        found, token = [], {}
        while True:
            body = json.dumps({"logGroupName": group, **token}).encode()
            headers = {"X-Amz-Target": "Logs_20140328.FilterLogEvents", "Content-Type": "application/x-amz-json-1.1"}
            page = json.load(self.request("POST", "/", body, headers))
            found += page["events"]
            if "nextToken" not in page:
                return found
            token = {"nextToken": page["nextToken"]}

    def parallel(self, count, name, /, **event):
        """`count` invocations at once; their answers."""
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(self.invoke(name, **event))) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == count, f"{len(answers)} of {count} answered"
        return answers

    def descendants(self):
        """Every process below the server."""
        parents = {}
        for pid in processes():
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents[pid] = int(fields[1])
        found, more = set(), {self.process.pid}
        while more:
            more = {pid for pid, parent in parents.items() if parent in more} - found
            found |= more
        return found

    def announced_losses(self):
        """The lines of the server's start that tell what is lost."""
        return [line.strip() for line in self.log.read_text().splitlines() if line.startswith("  lost ")]

    def stop(self, number=signal.SIGTERM):
        """Sends a signal and waits for the end; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout=PATIENCE)


def packed(files):
    """A zip of {name: (text, mode)} in base64."""
    package = io.BytesIO()
    with zipfile.ZipFile(package, "w") as archive:
        for path, (text, mode) in files.items():
            entry = zipfile.ZipInfo(path, (2024, 1, 1, 0, 0, 0))
            entry.external_attr = (0o100000 | mode) << 16
            archive.writestr(entry, text)
    return base64.b64encode(package.getvalue()).decode()


def fresh_data_dir(name):
    """A directory for one series of servers."""
    path = Path("/var/lib") / f"lab-{name}"
    shutil.rmtree(path, ignore_errors=True)
    return path
