"""The Python runtime: loads the handler and serves invocations from the Runtime API.

What a function can observe (messages, error bodies, log lines, context fields) follows Lambda's own client,
awslambdaric; the tests run both side by side. What differs is the cost: only modules that every start needs are
imported. In particular `json` (which imports `re`), `logging` and `traceback` are left until something wants them.
"""

import os
import sys
import time
from importlib import import_module

import _thread

from firelet_api import RuntimeApi
from firelet_json import dumps, loads

# Frames of the log descriptor: type, length, timestamp in microseconds, message.
_FRAME_TEXT = 0xA55A0003
_FRAME_JSON = 0xA55A0002
_FRAME_LEVEL = {"DEBUG": 0x08, "INFO": 0x0C, "WARNING": 0x10, "ERROR": 0x14, "CRITICAL": 0x18}

# Set by `_take_environment`.
JSON_FORMAT = False


class Invocation:
    """What log records say of the invocation that runs."""

    request_id = None
    tenant_id = None


class Fault(Exception):
    """A failure that the runtime names itself (`Runtime.…`), rather than one of the function's exceptions."""

    def __init__(self, kind, message, trace=None):
        Exception.__init__(self, message)
        self.kind = kind
        self.message = message
        self.trace = trace


# ---------------------------------------------------------------------------------------------------------------------
# Logs


class PlainSink:
    """Log text goes to the standard output, one line per record."""

    framed = False

    def log(self, message, frame_type=None):
        sys.stdout.write(message)

    def log_error(self, lines):
        sys.stdout.write("\r".join(lines) + "\n")

    def flush(self):
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (AttributeError, OSError, ValueError):
                pass


class FrameSink:
    """Log text goes to the platform's log descriptor in frames, so that records keep their bounds and levels."""

    framed = True

    def __init__(self, fd):
        self.fd = fd
        self.streams = []

    @staticmethod
    def frame(frame_type, message, micros):
        header = frame_type.to_bytes(4, "big") + len(message).to_bytes(4, "big") + micros.to_bytes(8, "big")
        return header + message

    def write(self, data):
        while data:
            data = data[os.write(self.fd, data) :]

    def log(self, message, frame_type=None):
        data = message.encode("utf-8", "replace")
        self.write(self.frame(frame_type or _FRAME_TEXT, data, int(time.time() * 1000000)))

    def log_error(self, lines):
        kind = (_FRAME_JSON if JSON_FORMAT else _FRAME_TEXT) | _FRAME_LEVEL["ERROR"]
        self.log("\n".join(lines), kind)

    def flush(self):
        for stream in self.streams:
            stream.flush_partial_line()


class LineStream:
    """`sys.stdout` and `sys.stderr` with a log descriptor: each whole line is one frame.

    Everything but text output is the real stream's: `fileno`, `buffer`, `encoding` and the rest.
    """

    def __init__(self, stream, sink):
        self._stream = stream
        self._sink = sink
        self._partial = ""
        self._lock = _thread.allocate_lock()
        sink.streams.append(self)

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.flush()

    def __iter__(self):
        return iter(self._stream)

    def write(self, text):
        if not isinstance(text, str):
            raise TypeError("write() argument must be str, not %s" % type(text).__name__)
        with self._lock:
            whole, newline, self._partial = (self._partial + text).rpartition("\n")
            if newline:
                self._emit(whole)
        return len(text)

    def writelines(self, lines):
        for line in lines:
            self.write(line)

    def flush(self):
        # What went to `buffer` directly is the only thing that waits in the real stream.
        self._stream.flush()

    def flush_partial_line(self):
        """At the end of an invocation no line stays open."""
        with self._lock:
            partial, self._partial = self._partial, ""
            if partial:
                self._emit(partial)
        try:
            self._stream.flush()
        except (OSError, ValueError):
            pass

    def _emit(self, whole):
        micros = int(time.time() * 1000000)
        sink = self._sink
        lines = whole.encode("utf-8", "replace").split(b"\n")
        sink.write(b"".join([sink.frame(_FRAME_TEXT, line + b"\n", micros) for line in lines]))


def _open_sink():
    fd = os.environ.pop("_LAMBDA_TELEMETRY_LOG_FD", None)
    if fd is None:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(line_buffering=True, errors="replace")
        return PlainSink()
    sink = FrameSink(int(fd))
    os.set_inheritable(sink.fd, False)
    sys.stdout = LineStream(sys.stdout, sink)
    sys.stderr = LineStream(sys.stderr, sink)
    return sink


class _LoggingWatch:
    """Sets up the root logger as Lambda does when the function first imports `logging`, and costs nothing before."""

    def __init__(self, sink):
        self.sink = sink

    def find_spec(self, name, path=None, target=None):
        if name != "logging":
            return None
        sys.meta_path.remove(self)
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                _set_up_logging(self.sink)

            spec.loader.exec_module = exec_module
        return spec


def _set_up_logging(sink):
    import firelet_logging

    firelet_logging.install(sink)


def _watch_logging(sink):
    if "logging" in sys.modules:
        _set_up_logging(sink)
    else:
        sys.meta_path.insert(0, _LoggingWatch(sink))


def _log_error(error, sink):
    if JSON_FORMAT:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record = {"timestamp": now, "level": "ERROR"}
        record.update(error)
        sink.log_error([dumps(record)])
        return
    kind, message = error["errorType"], error["errorMessage"]
    head = "[ERROR]"
    if kind:
        head += " " + kind
    if message:
        head += (": " if kind else " ") + message
    lines = [head, "Traceback (most recent call last):"]
    for entry in error["stackTrace"]:
        for line in entry.splitlines() or [""]:
            # The log service drops leading spaces; no-break spaces keep the shape of a traceback.
            text = line.lstrip(" ")
            lines.append("\u00a0" * (len(line) - len(text)) + text)
    sink.log_error(lines)


# ---------------------------------------------------------------------------------------------------------------------
# Errors


def _error(message, kind, stack, request_id=""):
    return {"errorMessage": message or "", "errorType": kind or "", "requestId": request_id, "stackTrace": stack or []}


def _frames(tb):
    """The traceback without this module's own frames at its beginning: (file, line, function, source)."""
    import traceback

    frames = [(f.filename, f.lineno, f.name, f.line) for f in traceback.extract_tb(tb)]
    for index, frame in enumerate(frames):
        if not frame[0].endswith(("/firelet_runtime.py", "/firelet_snapstart.py", "/bootstrap.py")):
            return frames[index:]
    return frames


def _formatted(frames):
    import traceback

    return traceback.format_list(frames)


def _xray_cause(kind, message, frames):
    stack = [{"label": name, "path": path, "line": line} for path, line, name, _ in frames]
    cause = {
        "working_directory": os.getcwd(),
        "exceptions": [{"message": message, "type": kind, "stack": stack}],
        "paths": list({frame[0] for frame in frames}),
    }
    return dumps(cause)


# ---------------------------------------------------------------------------------------------------------------------
# The handler and its context


def _load_handler(handler):
    try:
        module_name, function_name = handler.rsplit(".", 1)
    except ValueError as error:
        raise Fault("Runtime.MalformedHandlerName", "Bad handler '%s': %s" % (handler, error))
    if module_name.split(".")[0] in sys.builtin_module_names:
        message = "Cannot use built-in module %s as a handler module" % module_name
        raise Fault("Runtime.BuiltInModuleConflict", message)
    try:
        module = import_module(module_name.replace("/", "."))
    except ImportError as error:
        raise Fault("Runtime.ImportModuleError", "Unable to import module '%s': %s" % (module_name, error))
    except SyntaxError as error:
        where = ['  File "%s" Line %s\n    %s' % (error.filename, error.lineno, error.text)]
        message = "Syntax error in module '%s': %s" % (module_name, error)
        raise Fault("Runtime.UserCodeSyntaxError", message, where)
    try:
        return getattr(module, function_name)
    except AttributeError:
        message = "Handler '%s' missing on module '%s'" % (function_name, module_name)
        raise Fault("Runtime.HandlerNotFound", message)


class _Record:
    """An object whose fields are the named keys of a JSON object, `None` where it has them not."""

    __slots__ = ()

    def __init__(self, values=None):
        for name in self.__slots__:
            setattr(self, name, values.get(name) if values else None)

    def __repr__(self):
        fields = ",".join("%s=%s" % (name, getattr(self, name)) for name in self.__slots__)
        return "%s([%s])" % (type(self).__name__, fields)


class CognitoIdentity(_Record):
    __slots__ = ("cognito_identity_id", "cognito_identity_pool_id")


class Client(_Record):
    __slots__ = ("installation_id", "app_title", "app_version_name", "app_version_code", "app_package_name")


class ClientContext(_Record):
    __slots__ = ("custom", "env", "client")


class LambdaContext:
    """What a handler gets as its second argument."""

    # The same in every invocation of an environment; set by `_take_environment`.
    log_group_name = None
    log_stream_name = None
    function_name = None
    memory_limit_in_mb = None
    function_version = None
    _W3C_FIELDS = ("traceparent", "tracestate", "baggage")

    def __init__(self, headers, sink):
        self._sink = sink
        self.aws_request_id = headers.get("lambda-runtime-aws-request-id")
        self.invoked_function_arn = headers.get("lambda-runtime-invoked-function-arn")
        self.tenant_id = headers.get("lambda-runtime-aws-tenant-id")
        self._epoch_deadline_time_in_ms = int(headers.get("lambda-runtime-deadline-ms") or 0)
        self._w3c_fields = {}
        self.client_context = None
        client_context = _json_header(headers, "lambda-runtime-client-context", "Client Context")
        if client_context is not None:
            w3c = client_context.pop("w3c", None)
            if isinstance(w3c, dict):
                self._w3c_fields = {k: w3c[k] for k in self._W3C_FIELDS if isinstance(w3c.get(k), str)}
            self.client_context = ClientContext(client_context)
            if self.client_context.client is not None:
                self.client_context.client = Client(self.client_context.client)
        self.identity = CognitoIdentity()
        identity = _json_header(headers, "lambda-runtime-cognito-identity", "Cognito Identity")
        if identity is not None:
            self.identity.cognito_identity_id = identity.get("cognitoIdentityId")
            self.identity.cognito_identity_pool_id = identity.get("cognitoIdentityPoolId")

    def get_remaining_time_in_millis(self):
        return max(0, self._epoch_deadline_time_in_ms - int(time.time() * 1000))

    def w3c(self):
        return dict(self._w3c_fields)

    def log(self, msg):
        logging = sys.modules.get("logging")
        if logging is not None and not any(hasattr(h, "log_sink") for h in logging.getLogger().handlers):
            sys.stdout.write(str(msg))
        else:
            self._sink.log(str(msg))

    def __repr__(self):
        names = (
            "aws_request_id",
            "log_group_name",
            "log_stream_name",
            "function_name",
            "memory_limit_in_mb",
            "function_version",
            "invoked_function_arn",
            "client_context",
            "identity",
            "tenant_id",
        )
        return "LambdaContext([%s])" % ",".join("%s=%s" % (name, getattr(self, name)) for name in names)


def _json_header(headers, header, name):
    text = headers.get(header)
    if not text:
        return None
    try:
        return loads(text.encode("utf-8"))
    except Exception as error:
        raise Fault("Runtime.LambdaContextUnmarshalError", "Unable to parse %s JSON: %s" % (name, error))


# ---------------------------------------------------------------------------------------------------------------------
# The process


def main():
    """Runs the function until the platform ends the process."""
    prestart = os.environ.get("FIRELET_PRESTART_FD")
    if prestart:
        from firelet_prestart import fork_from_here, is_awaited, wait

        zygote = os.environ.pop("FIRELET_ZYGOTE", None)
        if zygote:
            # Often enough for the interpreter to have adapted its code, which it writes into.
            for _ in range(16):
                _rehearse()
            fork_from_here(zygote)
        if not is_awaited(int(prestart)):
            _rehearse()
        wait(int(prestart))
    _take_environment()
    address = os.environ["AWS_LAMBDA_RUNTIME_API"]
    worker = None
    concurrency = int(os.environ.get("AWS_LAMBDA_MAX_CONCURRENCY") or 1)
    if concurrency > 1:
        from firelet_concurrent import fork_workers

        worker = fork_workers(concurrency, address)
    if sys.flags.no_site:
        _set_site()
    task_root = os.environ.get("LAMBDA_TASK_ROOT", os.getcwd())
    handler = os.environ.get("_HANDLER") or (sys.argv[1] if len(sys.argv) > 1 else "")
    _set_path(task_root)
    sink = _open_sink()
    if worker is not None and sink.framed:
        worker.share_log(sink)
    api = RuntimeApi(address)
    error = None
    try:
        _watch_logging(sink)
        function = _load_handler(handler)
    except Fault as fault:
        error = _error(fault.message, fault.kind, fault.trace)
    except Exception as problem:
        frames = _frames(problem.__traceback__)
        error = _error(str(problem), type(problem).__name__, _formatted(frames))
    finally:
        # Also on the way out of a SystemExit.
        sink.flush()
    if error is not None:
        _log_error(error, sink)
        sink.flush()
        api.fail_init(error)
        sys.exit(1)
    if os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") == "snap-start":
        from firelet_snapstart import complete_init

        complete_init(api, sink)
    if worker is not None:
        worker.initialized()
    try:
        _serve(api, function, sink, worker)
    finally:
        sink.flush()


def _rehearse():
    from firelet_rehearsal import rehearse

    rehearse(RuntimeApi("127.0.0.1:9001"), _load_handler, _serve_one)
    Invocation.request_id = None
    del os.environ["_X_AMZN_TRACE_ID"]


def _take_environment():
    global JSON_FORMAT
    JSON_FORMAT = os.environ.get("AWS_LAMBDA_LOG_FORMAT", "").upper() == "JSON"
    LambdaContext.log_group_name = os.environ.get("AWS_LAMBDA_LOG_GROUP_NAME")
    LambdaContext.log_stream_name = os.environ.get("AWS_LAMBDA_LOG_STREAM_NAME")
    LambdaContext.function_name = os.environ.get("AWS_LAMBDA_FUNCTION_NAME")
    LambdaContext.memory_limit_in_mb = os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE")
    LambdaContext.function_version = os.environ.get("AWS_LAMBDA_FUNCTION_VERSION")


def _set_site():
    """What `site` does for an interpreter that was started without it (-S), as far as functions can tell.

    Left out are the .pth files: they are the customs of the host that the interpreter came from, and reading them is the
    dearest part of a start. An interpreter of a virtual environment still needs all of `site` to find its packages, and a
    function that sets PYTHONPATH may have a `sitecustomize` there.
    """
    search = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    custom = any(os.path.exists(os.path.join(path, "sitecustomize.py")) for path in search)
    program = os.path.dirname(sys.executable)
    homes = (program, os.path.dirname(program))
    if custom or any(os.path.exists(os.path.join(home, "pyvenv.cfg")) for home in homes):
        import site

        site.main()
        return
    import builtins

    from _sitebuiltins import Quitter, _Helper

    builtins.quit = Quitter("quit", "Ctrl-D (i.e. EOF)")
    builtins.exit = Quitter("exit", "Ctrl-D (i.e. EOF)")
    builtins.help = _Helper()
    version = "python%d.%d" % sys.version_info[:2]
    # Debian keeps the packages of its own interpreter elsewhere.
    for name in (version + "/site-packages", version + "/dist-packages", "python3/dist-packages"):
        path = os.path.join(sys.prefix, "lib", name)
        if os.path.isdir(path):
            sys.path.append(path)


def _set_path(task_root):
    version = "python%d.%d" % sys.version_info[:2]
    first = [task_root, "/opt/python/lib/%s/site-packages" % version, "/opt/python"]
    rest = []
    for path in sys.path:
        if path not in first and path not in rest:
            rest.append(path)
    sys.path[:] = first + rest


def _serve(api, function, sink, worker):
    while True:
        _serve_one(api, function, sink, worker)


def _serve_one(api, function, sink, worker):
    """Waits for an invocation and answers it. The platform freezes the process then, and nothing of it stays in memory."""
    environ = os.environ
    headers, payload = api.next()
    request_id = headers.get("lambda-runtime-aws-request-id", "")
    Invocation.request_id = request_id
    if worker is not None:
        worker.begins(request_id)
    Invocation.tenant_id = headers.get("lambda-runtime-aws-tenant-id")
    trace_id = headers.get("lambda-runtime-trace-id")
    if trace_id is not None:
        environ["_X_AMZN_TRACE_ID"] = trace_id
    elif "_X_AMZN_TRACE_ID" in environ:
        del environ["_X_AMZN_TRACE_ID"]

    error = cause = None
    try:
        context = LambdaContext(headers, sink)
        event = _event(payload, headers.get("content-type", "application/json"))
        body, content_type = _result(function(event, context))
    except Fault as fault:
        error = _error(fault.message, fault.kind, fault.trace, request_id)
        cause = _xray_cause("LambdaValidationError", fault.message, [])
    except Exception as problem:
        frames = _frames(problem.__traceback__)
        kind = type(problem).__name__
        error = _error(str(problem), kind, _formatted(frames), request_id)
        cause = _xray_cause(kind, str(problem), frames)
    if error is not None:
        _log_error(error, sink)
    sink.flush()
    if error is not None:
        status = api.fail(request_id, error, cause)
        what = "error"
    else:
        status = api.respond(request_id, body, content_type)
        what = "success"
    if status >= 300:
        text = "LAMBDA_RUNTIME Failed to post handler %s response. Http response code: %d.\n"
        sys.stderr.write(text % (what, status))
        if status >= 500:
            sys.exit(1)
    if worker is not None:
        worker.ends()


def _event(payload, content_type):
    if content_type != "application/json":
        return payload
    try:
        return loads(payload)
    except Exception as error:
        raise Fault("Runtime.UnmarshalError", "Unable to unmarshal input: %s" % error)


def _result(value):
    if isinstance(value, bytes):
        return value, "application/unknown"
    try:
        return dumps(value).encode("utf-8"), "application/json"
    except Exception as error:
        raise Fault("Runtime.MarshalError", "Unable to marshal response: %s" % error)
