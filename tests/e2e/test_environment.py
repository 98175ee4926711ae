"""What a function finds in its execution environment: variables, context, user, files."""

import base64
import json
import re
import time

VARIABLES = "import os\ndef handler(event, context): return dict(os.environ)\n"


def test_environment_variables_are_lambdas(firelet):
    function = firelet.deploy(VARIABLES, MemorySize=192, variables={"COLOUR": "blue"})
    found = function()
    exact = {
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_LAMBDA_FUNCTION_NAME": function.name,
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "192",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "AWS_LAMBDA_LOG_GROUP_NAME": function.group,
        "AWS_EXECUTION_ENV": "AWS_Lambda_python3.12",
        "AWS_XRAY_CONTEXT_MISSING": "LOG_ERROR",
        "_HANDLER": "app.handler",
        "LAMBDA_TASK_ROOT": "/var/task",
        "LAMBDA_RUNTIME_DIR": "/var/runtime",
        "TZ": ":UTC",
        "LANG": "en_US.UTF-8",
        "COLOUR": "blue",
    }
    assert {name: found.get(name) for name in exact} == exact
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_LAMBDA_RUNTIME_API"):
        assert found.get(name), f"{name} is missing"
    for part in ("/var/lang/bin", "/opt/bin"):
        assert part in found["PATH"].split(":")
    for part in ("/var/lang/lib", "/var/task/lib", "/opt/lib"):
        assert part in found["LD_LIBRARY_PATH"].split(":")


def test_the_log_stream_is_named_by_date_version_and_environment(firelet):
    stream = firelet.deploy(VARIABLES)()["AWS_LAMBDA_LOG_STREAM_NAME"]
    assert re.fullmatch(r"\d{4}/\d{2}/\d{2}/\[\$LATEST\][0-9a-f]{32}", stream)


def test_the_host_environment_does_not_leak(start_firelet):
    server = start_firelet(environment={"HOST_SECRET": "do not tell"})
    found = server.deploy(VARIABLES)()
    assert "HOST_SECRET" not in found
    assert "do not tell" not in found.values()
    for name in ("HOME", "USER", "LOGNAME", "PYENV_ROOT"):
        assert name not in found


def test_the_user_may_override_the_overridable_variables_only(firelet):
    function = firelet.deploy(VARIABLES, variables={"TZ": "Europe/Athens", "LANG": "C.UTF-8"})
    found = function()
    assert (found["TZ"], found["LANG"]) == ("Europe/Athens", "C.UTF-8")


def test_the_context_object_describes_the_invocation(firelet):
    function = firelet.deploy(
        "def handler(event, context):\n"
        "    names = ['function_name', 'function_version', 'invoked_function_arn', 'memory_limit_in_mb',\n"
        "             'aws_request_id', 'log_group_name', 'log_stream_name']\n"
        "    found = {name: getattr(context, name) for name in names}\n"
        "    found['left'] = context.get_remaining_time_in_millis()\n"
        "    return found\n",
        Timeout=7,
    )
    answer = function.call()
    found = answer.ok()
    assert 5000 < found.pop("left") <= 7000
    assert found.pop("log_stream_name").count("/") == 3
    assert found == {
        "function_name": function.name,
        "function_version": "$LATEST",
        "invoked_function_arn": f"arn:aws:lambda:us-east-1:000000000000:function:{function.name}",
        "memory_limit_in_mb": "256",
        "aws_request_id": answer.request_id,
        "log_group_name": function.group,
    }


def test_the_client_context_reaches_the_function(firelet):
    function = firelet.deploy("def handler(event, context): return context.client_context.custom\n")
    coded = base64.b64encode(json.dumps({"custom": {"tenant": "seven"}}).encode()).decode()
    assert function(ClientContext=coded) == {"tenant": "seven"}


def test_the_trace_header_reaches_the_function(firelet):
    function = firelet.deploy("import os\ndef handler(event, context): return os.environ['_X_AMZN_TRACE_ID']\n")
    trace = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1"

    def add_header(request, **_):
        request.headers["X-Amzn-Trace-Id"] = trace

    events = firelet.lambda_.meta.events
    events.register("before-sign.lambda.Invoke", add_header)
    try:
        assert function() == trace
    finally:
        events.unregister("before-sign.lambda.Invoke", add_header)


def test_the_process_runs_as_lambdas_user_in_the_task_folder(firelet):
    found = firelet.deploy(
        "import os, pwd\n"
        "def handler(event, context):\n"
        "    return {'user': pwd.getpwuid(os.getuid()).pw_name, 'uid': os.getuid(), 'groups': os.getgroups(),\n"
        "            'cwd': os.getcwd(), 'task': os.stat('/var/task').st_uid, 'tmp': oct(os.stat('/tmp').st_mode)}\n"
    )()
    assert found["user"] == "sbx_user1051"
    assert found["uid"] != 0
    assert 0 not in found["groups"]
    assert (found["cwd"], found["tmp"]) == ("/var/task", "0o41777")
    assert found["task"] != found["uid"]


def test_the_wrapper_script_starts_the_runtime(firelet):
    files = {
        "app.py": VARIABLES,
        "wrapper": '#!/bin/sh\nexport WRAPPED="$#"\nexec "$@"\n',
    }
    found = firelet.deploy(files, variables={"AWS_LAMBDA_EXEC_WRAPPER": "/var/task/wrapper"})()
    assert int(found["WRAPPED"]) >= 1


def test_globals_survive_warm_invocations(firelet):
    function = firelet.deploy("count = 0\ndef handler(event, context):\n    global count; count += 1; return count\n")
    assert [function() for _ in range(5)] == [1, 2, 3, 4, 5]


def test_after_a_crash_globals_are_gone_and_tmp_is_kept(firelet):
    function = firelet.deploy(
        "import os\n"
        "count = 0\n"
        "def handler(event, context):\n"
        "    global count\n"
        "    count += 1\n"
        "    with open('/tmp/lines', 'a') as file: file.write('x\\n')\n"
        "    if event.get('crash'): os._exit(1)\n"
        "    return [count, len(open('/tmp/lines').readlines())]\n"
    )
    assert function() == [1, 1]
    assert function() == [2, 2]
    assert function.call({"crash": True}).error == "Unhandled"
    assert function() == [1, 4]


def test_nothing_runs_between_invocations(firelet, root):
    function = firelet.deploy(
        "import threading, time\n"
        "ticks = []\n"
        "def tick():\n"
        "    while True:\n"
        "        ticks.append(time.monotonic())\n"
        "        time.sleep(0.01)\n"
        "threading.Thread(target=tick, daemon=True).start()\n"
        "def handler(event, context):\n"
        "    time.sleep(0.1)\n"
        "    gaps = [b - a for a, b in zip(ticks, ticks[1:])]\n"
        "    return {'gap': max(gaps), 'ticks': len(ticks)}\n"
    )
    assert function()["gap"] < 1
    # The pause is the experiment: a thread that ticks each 10 ms must have missed nearly all of it.
    time.sleep(3)
    assert function()["gap"] > 2


def test_an_init_over_ten_seconds_is_redone_within_the_invocation(firelet):
    function = firelet.deploy(
        "import os, time\n"
        "if not os.path.exists('/tmp/tried'):\n"
        "    open('/tmp/tried', 'w').close()\n"
        "    time.sleep(60)\n"
        "def handler(event, context): return 'ready'\n"
    )
    started = time.monotonic()
    answer = function.call()
    assert answer.ok() == "ready"
    assert 10 <= time.monotonic() - started < 30
    assert "Init Duration" not in answer.log
    assert function.wait_for_log(r"INIT_REPORT Init Duration: 1\d{4}\.\d{2} ms\tPhase: init\tStatus: timeout")
