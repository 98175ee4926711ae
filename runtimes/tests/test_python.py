"""The Python runtime beside Lambda's own client, awslambdaric: what they post and log must be the same."""

import glob
import importlib.util
import json
import os
import socket
import subprocess
import sys

import pytest
from runtime_harness import REQUEST_ID, RUNTIMES, invocation, mask, run, write

OURS = [sys.executable, "-S", RUNTIMES / "python" / "bootstrap.py"]
OFFICIAL = [sys.executable, "-m", "awslambdaric"]
HAS_OFFICIAL = importlib.util.find_spec("awslambdaric") is not None
needs_official = pytest.mark.skipif(not HAS_OFFICIAL, reason="awslambdaric is not installed")
ENV = {"AWS_EXECUTION_ENV": "AWS_Lambda_python3.12"}

FILES = {
    "app.py": '''
import os, sys

def echo(event, context):
    return event

def nothing(event, context):
    pass

def text(event, context):
    return "grüß\\u2028 <&> \\x7f 𝄞 \\ud83d"[:-1]

def raw(event, context):
    return b"\\x00\\xff raw"

def numbers(event, context):
    import decimal
    return [1, 1.5, -0.0, 1e300, float("nan"), float("-inf"), True, None, 2**70, decimal.Decimal("1.10"),
            {"d": decimal.Decimal("NaN"), "e": [decimal.Decimal("-3.000")]}]

def shapes(event, context):
    import collections, enum
    Point = collections.namedtuple("Point", "x y")
    class Color(enum.IntEnum):
        RED = 1
    return {"p": Point(1, Point(2, 3)), "t": (1, 2), "b": b"bytes", b"k": 1, 5: 6, None: 7, True: 8, 1.5: 9,
            "c": Color.RED, "o": collections.OrderedDict(a=1), "l": [Point(0, 0)]}

def unserializable(event, context):
    return {"a": {1, 2}}

def bad_keys(event, context):
    return {(1, 2): 3}

def cyclic(event, context):
    a = []
    a.append(a)
    return a

def bad_bytes(event, context):
    return {"a": b"\\xff"}

def lone_surrogate(event, context):
    return "\\ud83d"

class Oops(Exception):
    pass

def inner(event):
    raise Oops("broken ünï " + str(event))

def fails(event, context):
    try:
        inner(event)
    except Oops as error:
        raise ValueError("outer\\nline") from error

def no_message(event, context):
    raise KeyError()

def deep(event, context):
    def recurse(n):
        if n == 0:
            raise RuntimeError("deep")
        recurse(n - 1)
    recurse(20)

def exits(event, context):
    sys.exit(3)

def exits_hard(event, context):
    os._exit(7)

def fields(event, context):
    first = {n: getattr(context, n) for n in ("function_name", "function_version", "invoked_function_arn",
             "memory_limit_in_mb", "aws_request_id", "log_group_name", "log_stream_name", "tenant_id")}
    cc = context.client_context
    first["client_context"] = None if cc is None else {"custom": cc.custom, "env": cc.env, "client": repr(cc.client)}
    first["identity"] = [context.identity.cognito_identity_id, context.identity.cognito_identity_pool_id]
    first["remaining"] = 0 < context.get_remaining_time_in_millis() <= 60000
    first["trace"] = os.environ.get("_X_AMZN_TRACE_ID")
    first["w3c"] = context.w3c()
    first["repr"] = repr(context)
    first["cwd"] = os.getcwd()
    return first

def prints(event, context):
    print("one")
    print("two", "three", sep="\\n")
    sys.stdout.write("half ")
    sys.stdout.write("line\\n")
    print("err", file=sys.stderr)
    context.log("through the context\\n")

def partial(event, context):
    print("open line", end="")

def logs(event, context):
    import logging
    logger = logging.getLogger()
    logger.setLevel("INFO")
    logger.debug("not shown")
    logger.info("info %s", "ünï")
    logger.warning("two\\nlines")
    logging.getLogger("named").error("named")
    try:
        1 / 0
    except ZeroDivisionError:
        logger.exception("caught")
    logger.info("extra", extra={"order": 7, "odd": {1}})
    logger.info({"as": "object"})
    context.log("through the context")

value = 5
''',
    "early_logs.py": '''
import logging
logging.getLogger().setLevel(logging.INFO)
logging.info("at init")
def handler(event, context):
    logging.getLogger("x").info("at invoke")
''',
    "pkg/sub/mod.py": "def handler(event, context):\n    return __name__\n",
    "import_error.py": "import does_not_exist_at_all\n",
    "from_import_error.py": "from os import does_not_exist\n",
    "syntax_error.py": "def handler(event, context):\n    return (\n",
    "raises.py": "def boom():\n    raise ValueError('at init')\nboom()\n",
    "init_exit.py": "import sys\nprint('leaving')\nsys.exit(4)\n",
    "init_exit_text.py": "import sys\nsys.exit('a text')\n",
    "paths.py": "import sys\ndef handler(event, context):\n    return sys.path[:1]\n",
}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return write(tmp_path_factory.mktemp("task"), FILES)


def both(task, handler, invocations, env=None, **options):
    ours = run(OURS, task, handler, invocations, {**ENV, **(env or {})}, **options)
    theirs = run(OFFICIAL, task, handler, invocations, {**ENV, **(env or {})}, arguments=[handler], **options)
    return ours, theirs


def normal_cause(post):
    cause = post.xray_cause
    if cause:
        cause["paths"].sort()
    return cause


def assert_same_posts(ours, theirs):
    assert [post.path for post in ours.posts] == [post.path for post in theirs.posts]
    for mine, reference in zip(ours.posts, theirs.posts):
        assert mine.body.decode("utf-8", "replace") == reference.body.decode("utf-8", "replace")
        assert normal_cause(mine) == normal_cause(reference)
        names = ["content-type", "lambda-runtime-function-error-type", "lambda-runtime-function-response-mode"]
        if mine.path == "init/error":
            # The reference sends this one report without a content type.
            names.remove("content-type")
        for name in names:
            if reference.headers.get(name) is not None:
                assert mine.headers.get(name) == reference.headers.get(name), name


def without_notices(text):
    """The reference's general advice about runtime updates is not ours to give."""
    lines = [line for line in text.splitlines(keepends=True) if "LAMBDA_WARNING" not in line]
    return mask("".join(lines))


SUCCESS = [
    ("app.echo", [invocation({"a": [1, {"b": None}], "ü": "é𝄞"})]),
    ("app.echo", [invocation(b' {"deep": [[[[]]]], "n": -1.5e-7, "big": 123456789012345678901234567890} \n')]),
    ("app.echo", [invocation(b'"text"'), invocation(b"null"), invocation(b"[]"), invocation(b"17")]),
    ("app.echo", [invocation(b"not json", **{"Content-Type": "text/plain"})]),
    ("app.echo", [invocation({"large": "xyz" * 350000})]),
    ("app.nothing", [invocation()]),
    ("app.text", [invocation()]),
    ("app.raw", [invocation()]),
    ("app.numbers", [invocation()]),
    ("app.shapes", [invocation()]),
    ("pkg/sub/mod.handler", [invocation()]),
    ("pkg.sub.mod.handler", [invocation()]),
    ("app.fields", [invocation()]),
    (
        "app.fields",
        [
            invocation(
                Lambda_Runtime_Client_Context=json.dumps(
                    {
                        "custom": {"k": "v"},
                        "env": {"locale": "de"},
                        "client": {"installation_id": "i", "app_title": "t"},
                        "w3c": {"traceparent": "00-1", "other": "x", "baggage": 5},
                    }
                ),
                Lambda_Runtime_Cognito_Identity='{"cognitoIdentityId":"id","cognitoIdentityPoolId":"pool"}',
                Lambda_Runtime_Aws_Tenant_Id="tenant-1",
            ),
            invocation(request_id="second", Lambda_Runtime_Trace_Id=None),
        ],
    ),
]

FAILURE = [
    ("app.fails", [invocation({"x": 1}), invocation()]),
    ("app.no_message", [invocation()]),
    ("app.deep", [invocation()]),
    ("app.unserializable", [invocation()]),
    ("app.bad_keys", [invocation()]),
    ("app.cyclic", [invocation()]),
    ("app.bad_bytes", [invocation()]),
    ("app.echo", [invocation(b"")]),
    ("app.fields", [invocation(Lambda_Runtime_Client_Context="{bad")]),
    ("app.fields", [invocation(Lambda_Runtime_Cognito_Identity="{bad")]),
]

INIT = ["import_error.handler", "from_import_error.handler", "syntax_error.handler", "raises.handler", "nodots",
        "app.missing", "absent.handler", "sys.handler", "", "init_exit.handler", "init_exit_text.handler"]  # fmt: skip


@needs_official
@pytest.mark.parametrize("handler,invocations", SUCCESS)
def test_responses_are_the_references(task, handler, invocations):
    ours, theirs = both(task, handler, invocations)
    assert len(ours.posts) == len(invocations)
    assert_same_posts(ours, theirs)
    assert without_notices(ours.stdout) == without_notices(theirs.stdout)


@needs_official
@pytest.mark.parametrize("handler,invocations", FAILURE)
def test_error_reports_are_the_references(task, handler, invocations):
    ours, theirs = both(task, handler, invocations)
    assert len(ours.posts) == len(invocations) and all(post.path.endswith("/error") for post in ours.posts)
    assert_same_posts(ours, theirs)
    assert without_notices(ours.stdout) == without_notices(theirs.stdout)
    assert ours.nexts == theirs.nexts == len(invocations) + 1, "the runtime goes on after an error"


@needs_official
def test_an_event_that_is_not_json_is_the_references_error(task):
    # Words after the colon are the JSON library's, and the reference brings another one.
    ours, theirs = both(task, "app.echo", [invocation(b"{not json")])
    messages = [result.post.json["errorMessage"] for result in (ours, theirs)]
    assert all(text.startswith("Unable to unmarshal input: Expecting property name") for text in messages), messages
    assert ours.post.json["errorType"] == theirs.post.json["errorType"] == "Runtime.UnmarshalError"


@needs_official
@pytest.mark.parametrize("handler", INIT)
def test_failed_inits_are_the_references(task, handler):
    ours, theirs = both(task, handler, [invocation()])
    assert_same_posts(ours, theirs)
    assert ours.exit_code == theirs.exit_code is not None
    assert ours.nexts == theirs.nexts == 0
    assert without_notices(ours.stdout) == without_notices(theirs.stdout)


@needs_official
@pytest.mark.parametrize("handler", ["app.exits", "app.exits_hard"])
def test_a_process_that_ends_is_left_to_the_platform(task, handler):
    ours, theirs = both(task, handler, [invocation()])
    assert ours.posts == theirs.posts == []
    assert ours.exit_code == theirs.exit_code is not None


@needs_official
@pytest.mark.parametrize("env", [{}, {"AWS_EXECUTION_ENV": "AWS_Lambda_python3.11"}])
def test_characters_outside_ascii_follow_the_release(task, env):
    ours, theirs = both(task, "app.text", [invocation()], env)
    assert_same_posts(ours, theirs)


LOG_ENVIRONMENTS = [
    {},
    {"AWS_LAMBDA_LOG_LEVEL": "WARN"},
    {"AWS_LAMBDA_LOG_FORMAT": "JSON"},
    {"AWS_LAMBDA_LOG_FORMAT": "JSON", "AWS_LAMBDA_LOG_LEVEL": "ERROR"},
    {"AWS_LAMBDA_LOG_FORMAT": "JSON", "AWS_LAMBDA_LOG_LEVEL": "TRACE"},
]


@needs_official
@pytest.mark.parametrize("env", LOG_ENVIRONMENTS)
@pytest.mark.parametrize("handler", ["app.logs", "early_logs.handler", "app.fails", "raises.handler"])
def test_log_records_are_the_references(task, handler, env):
    tenant = {"Lambda_Runtime_Aws_Tenant_Id": "t-1"}
    ours, theirs = both(task, handler, [invocation(**tenant)], env)
    assert without_notices(ours.stdout) == without_notices(theirs.stdout)

    ours, theirs = both(task, handler, [invocation(**tenant)], env, log_fd=True)
    notices = [frame for frame in theirs.frames if "LAMBDA_WARNING" not in frame.message]
    assert [(f.kind, mask(f.message)) for f in ours.frames] == [(f.kind, mask(f.message)) for f in notices]


@needs_official
def test_printed_text_is_the_references(task):
    ours, theirs = both(task, "app.prints", [invocation()])
    assert (ours.stdout, ours.stderr) == (theirs.stdout, theirs.stderr)


def test_printed_lines_are_frames_where_there_is_a_descriptor(task):
    result = run(OURS, task, "app.prints", [invocation()], ENV, log_fd=True)
    expected = ["one\n", "two\n", "three\n", "half line\n", "err\n", "through the context\n"]
    assert [(f.kind, f.message) for f in result.frames] == [(0xA55A0003, text) for text in expected]
    assert result.stdout == result.stderr == ""


def test_an_open_line_does_not_wait_for_the_next_invocation(task):
    result = run(OURS, task, "app.partial", [invocation(), invocation()], ENV, log_fd=True)
    assert [f.message for f in result.frames] == ["open line\n", "open line\n"]
    assert run(OURS, task, "app.partial", [invocation()], ENV).stdout == "open line"


def test_a_refused_response_does_not_end_the_environment(task):
    result = run(OURS, task, "app.echo", [invocation({"n": 1}, status=413), invocation({"n": 2})], ENV)
    assert len(result.posts) == 2 and result.exit_code is None
    assert "Http response code: 413" in result.stderr


def test_a_response_that_is_no_text_is_an_error_not_a_crash(task):
    result = run(OURS, task, "app.lone_surrogate", [invocation(), invocation()], ENV)
    assert [post.path for post in result.posts] == ["invocation/%s/error" % REQUEST_ID] * 2
    assert result.posts[0].json["errorType"] == "Runtime.MarshalError"


def test_the_functions_own_modules_come_first(task):
    assert run(OURS, task, "paths.handler", [invocation()], ENV).post.json == [str(task)]


def other_pythons():
    found = sorted(glob.glob("/usr/bin/python3.?*") + glob.glob(os.path.expanduser("~/.pyenv/versions/3.*/bin/python3")))
    return [path for path in found if "config" not in path]


@pytest.mark.parametrize("python", other_pythons())
def test_every_python_of_this_machine_serves(task, python):
    version = subprocess.run([python, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True)
    if version.returncode != 0:
        pytest.skip("%s does not run" % python)
    command = [python, "-S", RUNTIMES / "python" / "bootstrap.py"]
    result = run(command, task, "app.logs", [invocation(), invocation()], ENV, log_fd=True)
    assert len(result.posts) == 2, result.stderr
    failed = run(command, task, "app.fails", [invocation()], ENV)
    assert failed.post.json["errorType"] == "ValueError"
    shapes = run(command, task, "app.numbers", [invocation()], ENV)
    assert b"1.10" in shapes.post.body and b"-3.000" in shapes.post.body


def test_a_cold_start_imports_nothing_heavy(task):
    write(task, {"lean.py": "import sys\ndef handler(event, context):\n    return sorted(sys.modules)\n"})
    bare = [sys.executable, "-c", "import importlib, sys; print(*sys.modules)"]
    already = set(subprocess.run(bare, capture_output=True, text=True, check=True, env={}).stdout.split())
    result = run(OURS, task, "lean.handler", [invocation()], ENV)
    imported = set(result.post.json) - already
    own = {"__main__", "firelet_api", "firelet_json", "firelet_runtime", "lean"}
    assert imported - own <= {"_json", "_socket", "_thread"}, imported


@pytest.mark.parametrize("python", other_pythons())
def test_without_site_a_function_sees_what_site_would_have_given_it(task, python):
    code = (
        "import builtins, sys\n"
        "def handler(event, context):\n"
        "    return [[p for p in sys.path if p.endswith('-packages')], hasattr(builtins, 'exit'), hasattr(builtins, 'help')]\n"
    )
    write(task, {"site_seen.py": code})
    bootstrap = RUNTIMES / "python" / "bootstrap.py"
    without, with_site = (
        run([python, *flags, bootstrap], task, "site_seen.handler", [invocation()], ENV).post.json for flags in (["-S"], [])
    )
    # What .pth files add, and a directory outside of the prefix, are the host's.
    assert [path for path in with_site[0] if path in without[0]] == without[0]
    assert without[1:] == [True, True]
    assert any(path.startswith("/opt/python") for path in without[0]) and len(without[0]) >= 2


def test_a_sitecustomize_on_the_functions_own_path_is_run(task):
    write(task, {"custom/sitecustomize.py": "import builtins\nbuiltins.customized = True\n"})
    write(task, {"seen.py": "import builtins\ndef handler(event, context):\n    return hasattr(builtins, 'customized')\n"})
    environment = {**ENV, "PYTHONPATH": str(task / "custom")}
    assert run(OURS, task, "seen.handler", [invocation()], environment).post.json is True


def test_a_virtual_environment_finds_its_packages(task, tmp_path):
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    packages = next(venv.glob("lib/python3*/site-packages"))
    (packages / "only_here.py").write_text("VALUE = 7\n")
    write(task, {"uses.py": "import only_here\ndef handler(event, context):\n    return only_here.VALUE\n"})
    command = [venv / "bin" / "python3", "-S", RUNTIMES / "python" / "bootstrap.py"]
    assert run(command, task, "uses.handler", [invocation()], ENV).post.json == 7


def test_the_runtime_api_may_be_a_name(task):
    code = "import firelet_api; api = firelet_api.RuntimeApi('localhost:%d'); api._connect(); print(api._socket.getpeername()[1])"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        command = [sys.executable, "-c", code % port]
        output = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(RUNTIMES / "python")})
    assert output.stdout.strip() == str(port), output.stderr


PRESTART = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "LEFT_BEHIND": "1", **ENV}


@pytest.mark.parametrize("log_fd", [False, True])
def test_an_interpreter_that_waited_for_its_environment_is_like_one_that_did_not(tmp_path, log_fd):
    write(tmp_path, {"app.py": """
import os, random, sys, time
random.seed(1)
def look(event, context):
    print("said")
    names = [name for name in os.environ if name not in ("PATH", "AWS_LAMBDA_RUNTIME_API", "LC_CTYPE", "_LAMBDA_TELEMETRY_LOG_FD")]
    # Nobody has been here before: no event, module or open file is left of what a runtime did while it waited.
    modules = {name for name in sys.modules if name not in ("firelet_prestart", "gc")}
    left = [sorted(modules), sorted(sys.path_importer_cache), len(os.listdir("/proc/self/fd")), context.aws_request_id]
    return [sorted(names), os.getcwd(), sys.path[0], time.strftime("%Z"), context.function_name, left]
"""})
    env = {**ENV, "TZ": "EST5", "AWS_LAMBDA_LOG_FORMAT": "JSON"}
    runs = [run(OURS, tmp_path, "app.look", [invocation()], env, log_fd, prestart=prestart) for prestart in (None, PRESTART)]
    plain, waited = [(ran.post.json, ran.stdout, [frame.message for frame in ran.frames]) for ran in runs]
    assert waited == plain
    assert plain[0][3] == "EST" and plain[0][1] == str(tmp_path)


def test_a_rehearsal_loads_and_serves_a_function():
    code = """if True:
        import sys
        sys.path.insert(0, %r)
        import firelet_runtime as runtime
        def watched(kind, name):
            method = getattr(kind, name)
            def watch(*arguments):
                seen.append([name, *arguments[1:]])
                return method(*arguments)
            setattr(kind, name, watch)
        seen = []
        watched(runtime.RuntimeApi, "next")
        watched(runtime.RuntimeApi, "respond")
        for _ in range(2):
            runtime._rehearse()
        from firelet_json import dumps
        print(dumps([[name, *map(str, arguments)] for name, *arguments in seen]))
    """
    ran = subprocess.run([sys.executable, "-c", code % str(RUNTIMES / "python")], stdout=subprocess.PIPE, check=True, env={})
    answered = [str(b'{"name": "value", "list": [1, 2.5, null, true]}'), "application/json"]
    assert json.loads(ran.stdout) == 2 * [["next"], ["respond", "00000000-0000-0000-0000-000000000000", *answered]]


def test_an_interpreter_that_waited_and_had_drawn_random_numbers_draws_others():
    code = "import random, os, sys; sys.path.insert(0, %r); random.seed(7); from firelet_prestart import wait; wait(int(os.environ['FD'])); print(random.random())"
    drawn = set()
    for _ in range(2):
        ours, theirs = socket.socketpair()
        process = subprocess.Popen(
            [sys.executable, "-c", code % str(RUNTIMES / "python")],
            env={"FD": str(theirs.fileno())}, pass_fds=(theirs.fileno(),), stdout=subprocess.PIPE,
        )
        theirs.close()
        assert len(ours.recv(1)) == 1
        ours.sendall(b'{"env": [], "cwd": "/"}')
        ours.close()
        drawn.add(process.communicate(timeout=30)[0])
        assert process.returncode == 0
    assert len(drawn) == 2


@pytest.mark.parametrize("awaited", [False, True])
def test_nothing_is_rehearsed_where_somebody_waits_already(awaited):
    ours, theirs = socket.socketpair()
    if awaited:
        ours.send(b" ")
    environment = {"PYTHONPATH": str(RUNTIMES / "python"), "FIRELET_PRESTART_FD": str(theirs.fileno())}
    # Tells on its standard error what is imported.
    environment["PYTHONPROFILEIMPORTTIME"] = "1"
    process = subprocess.Popen([*map(str, OURS)], env=environment, pass_fds=(theirs.fileno(),), stderr=subprocess.PIPE, text=True)
    theirs.close()
    assert ours.recv(1) == b"\n"
    ours.close()
    _, imported = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "firelet_prestart" in imported
    assert ("firelet_rehearsal" in imported) != awaited


def test_an_interpreter_that_nobody_wanted_ends():
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [*map(str, OURS)], env={"PYTHONPATH": str(RUNTIMES / "python"), "FIRELET_PRESTART_FD": str(theirs.fileno())}, pass_fds=(theirs.fileno(),)
    )
    theirs.close()
    assert len(ours.recv(1)) == 1
    ours.close()
    assert process.wait(timeout=30) == 0
