"""A Runtime API in this process, and runtimes started against it as plain processes.

Nothing here sleeps: a run ends when the runtime asks for more invocations than there are, or when its process ends.
"""

import http.server
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path

RUNTIMES = Path(__file__).resolve().parent.parent
REQUEST_ID = "8476a536-e9f4-11e8-9739-2dfe598c3fcd"
ARN = "arn:aws:lambda:us-east-1:000000000000:function:probe"
DEADLINE_SECONDS = 30


class Post:
    """One request that a runtime sent, other than `next`."""

    def __init__(self, path, headers, body, trailers):
        self.path = path.replace("/2018-06-01/runtime/", "")
        self.headers = headers
        self.body = body
        self.trailers = trailers

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def xray_cause(self):
        text = self.headers.get("lambda-runtime-function-xray-error-cause")
        return json.loads(text) if text else None

    def __repr__(self):
        return "Post(%s, %s, %r)" % (self.path, self.headers, self.body[:300])


class Frame:
    """One record from the log descriptor."""

    def __init__(self, kind, micros, message):
        self.kind = kind
        self.micros = micros
        self.message = message

    def __repr__(self):
        return "Frame(%#x, %r)" % (self.kind, self.message)


class Run:
    """What a runtime did until it was idle or ended."""

    def __init__(self, posts, stdout, stderr, exit_code, frames, nexts):
        self.posts = posts
        self.stdout = stdout
        self.stderr = stderr
        self.exit_code = exit_code
        self.frames = frames
        self.nexts = nexts

    @property
    def post(self):
        assert len(self.posts) == 1, (self.posts, self.stdout, self.stderr)
        return self.posts[0]


def invocation(payload=b"{}", request_id=REQUEST_ID, status=202, **headers):
    """An invocation for `run`; `status` is the answer to its response."""
    if not isinstance(payload, bytes):
        payload = json.dumps(payload).encode()
    named = {
        "Lambda-Runtime-Aws-Request-Id": request_id,
        "Lambda-Runtime-Deadline-Ms": str(int(time.time() * 1000) + 60000),
        "Lambda-Runtime-Invoked-Function-Arn": ARN,
        "Lambda-Runtime-Trace-Id": "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Parent=9a9197af755a6419;Sampled=1",
        "Content-Type": "application/json",
    }
    for name, value in headers.items():
        named[name.replace("_", "-")] = value
    return payload, {name: value for name, value in named.items() if value is not None}, status


class _Api(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, invocations, on_restore):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.on_restore = on_restore
        self.waiting = list(invocations)
        self.answer = 202
        self.posts = []
        self.nexts = 0
        self.given = 0
        self.idle = threading.Event()
        self.stopped = threading.Event()
        self.lock = threading.Lock()

    def look_whether_idle(self):
        """Nothing is left to give, somebody has asked for more, and all that was given is answered."""
        with self.lock:
            answered = sum(post.path.startswith("invocation/") for post in self.posts)
            if not self.waiting and self.nexts > self.given and answered >= self.given:
                self.idle.set()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, *args):
        pass

    def reply(self, status, body=b"", headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def do_GET(self):
        api = self.server
        if self.path == "/2018-06-01/runtime/restore/next":
            if api.on_restore is None:
                self.reply(404)
                return
            api.on_restore()
            self.reply(200)
            # As the connections of a process that is restored on another day.
            self.close_connection = True
            return
        with api.lock:
            api.nexts += 1
            item = api.waiting.pop(0) if api.waiting else None
            if item is not None:
                api.answer = item[2]
                api.given += 1
        if item is None:
            api.look_whether_idle()
            api.stopped.wait()
            self.close_connection = True
            return
        payload, headers, _ = item
        self.reply(200, payload, headers)

    def do_POST(self):
        trailers = {}
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while True:
                size = int(self.rfile.readline().split(b";")[0], 16)
                if size == 0:
                    break
                body += self.rfile.read(size)
                self.rfile.readline()
            for line in iter(self.rfile.readline, b"\r\n"):
                name, _, value = line.decode().partition(":")
                trailers[name.lower()] = value.strip()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        raw = {}
        for name, value in self.headers.items():
            # http.server decodes as Latin-1; the runtimes send UTF-8.
            raw[name.lower()] = value.encode("latin-1").decode("utf-8")
        api = self.server
        with api.lock:
            api.posts.append(Post(self.path, raw, body, trailers))
        self.reply(api.answer, b'{"status":"OK"}\n', {"Content-Type": "application/json"})
        api.look_whether_idle()


def run(command, task, handler, invocations=(), env=None, log_fd=False, arguments=(), prestart=None, start_in="/", on_restore=None):
    """Starts a runtime in directory `task` and serves it `invocations`.

    With `on_restore` it is an environment of a snapshot: the function is called while the runtime waits in
    `restore/next`, whose connection ends with the answer.
    With `prestart`, an environment, it is started with that alone, and is given its own and its directory once it waits;
    `task` is an empty directory before.
    """
    api = _Api(invocations, on_restore)
    threading.Thread(target=api.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    environment = {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "TZ": ":UTC",
        "AWS_LAMBDA_RUNTIME_API": "127.0.0.1:%d" % api.server_port,
        "_HANDLER": handler,
        "LAMBDA_TASK_ROOT": str(task),
        "LAMBDA_RUNTIME_DIR": "/var/runtime",
        "AWS_LAMBDA_FUNCTION_NAME": "probe",
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "256",
        "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/probe",
        "AWS_LAMBDA_LOG_STREAM_NAME": "2026/01/01/[$LATEST]0123456789abcdef",
        **(env or {}),
    }
    frames = b""
    reader = read_end = None
    pass_fds = ()
    if log_fd:
        read_end, write_end = os.pipe()
        environment["_LAMBDA_TELEMETRY_LOG_FD"] = str(write_end)
        pass_fds = (write_end,)
    given = None
    if prestart is not None:
        ours, theirs = socket.socketpair()
        given = environment
        environment = {**prestart, "FIRELET_PRESTART_FD": str(theirs.fileno())}
        if log_fd:
            environment["_LAMBDA_TELEMETRY_LOG_FD"] = given.pop("_LAMBDA_TELEMETRY_LOG_FD")
        pass_fds += (theirs.fileno(),)
        absent = Path(str(task) + ".absent")
        os.rename(task, absent)
        os.mkdir(task)
    process = subprocess.Popen(
        [*map(str, command), *arguments],
        cwd=start_in if given else str(task),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=pass_fds,
        # Its processes end with it.
        start_new_session=True,
    )
    collected = {}
    if given:
        theirs.close()
        ours.settimeout(DEADLINE_SECONDS)
        try:
            ready = ours.recv(1)
        finally:
            os.rmdir(task)
            os.rename(absent, task)
        assert len(ready) == 1
        ours.sendall(json.dumps({"env": list(given.items()), "cwd": str(task)}).encode())
        ours.close()
    if log_fd:
        os.close(write_end)

        def drain():
            with open(read_end, "rb") as pipe:
                collected["frames"] = pipe.read()

        reader = threading.Thread(target=drain)
        reader.start()

    def end_when_idle():
        api.idle.wait(DEADLINE_SECONDS)
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    killer = threading.Thread(target=end_when_idle, daemon=True)
    killer.start()
    stdout, stderr = process.communicate(timeout=DEADLINE_SECONDS + 5)
    ended_itself = not api.idle.is_set()
    api.idle.set()
    api.stopped.set()
    api.shutdown()
    api.server_close()
    if reader is not None:
        reader.join(5)
        frames = collected.get("frames", b"")
    code = process.returncode if ended_itself else None
    return Run(api.posts, stdout.decode(), stderr.decode(), code, parse_frames(frames), api.nexts)


def lay_out_java(runtime, javac):
    """Compiles the Java runtime into `runtime`, as it is laid out at /var/runtime."""
    sources = RUNTIMES / "java"
    for packages, folder in ((("firelet", "crac"), "java"), (("api",), "java-api")):
        files = sorted(str(file) for package in packages for file in (sources / package).rglob("*.java"))
        subprocess.run([javac, "--release", "11", "-XDstringConcat=inline", "-d", runtime / folder, *files], check=True)
    include = Path(javac).resolve().parent.parent / "include"
    library = ["-o", runtime / "libenvironment.so", sources / "environment.c"]
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-I", include, "-I", include / "linux", *library], check=True)
    shutil.copy(sources / "bootstrap", runtime)


def lay_out_node(runtime):
    """Puts the Node.js runtime and its native part into `runtime`, as it is laid out at /var/runtime."""
    shutil.copytree(RUNTIMES / "nodejs", runtime)
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", runtime / "reseed.node", runtime / "reseed.c"], check=True)


def parse_frames(data):
    frames = []
    while data:
        kind, length, micros = struct.unpack(">IIQ", data[:16])
        frames.append(Frame(kind, micros, data[16 : 16 + length].decode()))
        assert len(data) >= 16 + length, "a frame is cut short"
        data = data[16 + length :]
    return frames


def mask(text):
    """Log text without what differs from run to run: times and code addresses."""
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?Z", "TIME", text)
    return re.sub(r"0x[0-9a-f]{6,}", "0xADDR", text)


def write(folder, files):
    """Writes a function's files into `folder`."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder
