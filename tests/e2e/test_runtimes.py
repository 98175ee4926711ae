"""The same small function in every language whose interpreter is present."""

import os
import subprocess
import time
from pathlib import Path

import pytest
from conftest import need
from server import ROOT

EXAMPLES = ROOT / "examples"


def example(language, name):
    return {name: (EXAMPLES / language / name).read_bytes()}


def check_counting(function):
    """What the examples for Python, Node.js and Java have in common."""
    first, second = function({"name": "Ada"}), function()
    assert (first["message"], second["message"]) == ("Hello, Ada!", "Hello, world!")
    assert (first["invocations_here"], second["invocations_here"]) == (1, 2)
    assert first["environment"] == second["environment"]


def test_python(firelet):
    check_counting(firelet.deploy(example("python", "app.py"), runtime="python3.12"))


@pytest.mark.parametrize("major", [20, 22])
def test_nodejs(firelet, major):
    files = {
        **example("nodejs", "index.mjs"),
        "version.cjs": "exports.handler = async () => process.versions.node.split('.')[0]\n",
    }
    runtime = f"nodejs{major}.x"
    check_counting(firelet.deploy(files, runtime=runtime, handler="index.handler"))
    assert firelet.deploy(files, runtime=runtime, handler="version.handler")() == str(major)


def test_nodejs_errors_have_nodes_form(firelet):
    files = {"index.js": "exports.handler = async () => { throw new RangeError('too far') }\n"}
    answer = firelet.deploy(files, runtime="nodejs20.x", handler="index.handler").call()
    assert answer.error == "Unhandled"
    assert (answer.payload["errorType"], answer.payload["errorMessage"]) == ("RangeError", "too far")
    assert answer.payload["trace"][0] == "RangeError: too far"


def rust(firelet):
    bootstrap = os.environ.get("FIRELET_TEST_RUST_BOOTSTRAP")
    if not bootstrap:
        pytest.skip("the Rust example is not built: scripts/test builds it and sets FIRELET_TEST_RUST_BOOTSTRAP")
    return firelet.deploy({"bootstrap": Path(bootstrap).read_bytes()}, runtime="provided.al2023", handler="bootstrap")


def test_rust_on_provided_al2023(firelet):
    function = rust(firelet)
    first, second = function.call({"name": "Ada"}), function.call()
    assert first.ok()["event"] == {"name": "Ada"}
    assert first.payload["request_id"] == first.request_id
    assert first.payload["function_arn"] == f"arn:aws:lambda:us-east-1:000000000000:function:{function.name}"
    assert (first.payload["invocations_here"], second.ok()["invocations_here"]) == (1, 2)


def test_rust_errors_and_ends(firelet):
    function = rust(firelet)
    failed = function.call({"fail": "no luck"})
    assert (failed.error, failed.payload["errorMessage"]) == ("Unhandled", "no luck")
    panicked = function.call({"panic": "oh"})
    assert panicked.error == "Unhandled" and "oh" in panicked.payload["errorMessage"]
    ended = function.call({"exit": 7})
    assert ended.payload == {
        "errorType": "Runtime.ExitError",
        "errorMessage": f"RequestId: {ended.request_id} Error: Runtime exited with error: exit status 7",
    }
    assert function()["invocations_here"] == 1


def test_provided_functions_are_told_no_execution_environment(firelet):
    # A custom runtime in a few lines of shell: bash speaks HTTP through /dev/tcp.
    need("bash")
    script = r"""#!/bin/bash
host=${AWS_LAMBDA_RUNTIME_API%:*} port=${AWS_LAMBDA_RUNTIME_API#*:}
while true; do
    exec 3<>"/dev/tcp/$host/$port"
    printf 'GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n' >&3
    id=
    while IFS= read -r line <&3; do
        line=${line%$'\r'}
        case ${line,,} in lambda-runtime-aws-request-id:*) id=${line#*: } ;; esac
        [ -z "$line" ] && break
    done
    exec 3>&-
    body="\"${AWS_EXECUTION_ENV-absent} $_HANDLER\""
    exec 3<>"/dev/tcp/$host/$port"
    printf 'POST /2018-06-01/runtime/invocation/%s/response HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s' \
        "$id" "${#body}" "$body" >&3
    cat <&3 >/dev/null
    exec 3>&-
done
"""
    function = firelet.deploy({"bootstrap": script}, runtime="provided.al2023", handler="my.handler")
    assert function() == "absent my.handler"
    assert function() == "absent my.handler"


def test_java(firelet, tmp_path):
    javac = need("javac")
    subprocess.run([javac, "--release", "17", "-d", tmp_path, EXAMPLES / "java/Hello.java"], check=True)
    files = {"Hello.class": (tmp_path / "Hello.class").read_bytes()}
    check_counting(firelet.deploy(files, runtime="java17", handler="Hello::handle", MemorySize=512))


def test_ruby(firelet):
    need("ruby")
    code = (
        "$count = 0\n"
        "def handler(event:, context:)\n"
        "  raise ArgumentError, event['fail'] if event['fail']\n"
        "  { count: ($count += 1), event: event, name: context.function_name }\n"
        "end\n"
    )
    function = firelet.deploy({"app.rb": code}, runtime="ruby3.3", handler="app.handler")
    assert function({"a": "ä"}) == {"count": 1, "event": {"a": "ä"}, "name": function.name}
    failed = function.call({"fail": "no"})
    assert (failed.payload["errorType"], failed.payload["errorMessage"]) == ("Function<ArgumentError>", "no")
    assert function()["count"] == 2


def test_an_absent_minor_version_is_served_by_the_nearest_unless_strict(firelet, start_firelet):
    # No machine has all of these; at least one of them is absent everywhere.
    listed = firelet.firelet("runtimes", "--json")
    assert listed.returncode == 0, listed.stderr
    have = listed.stdout
    absent = next((name for name in ("python3.14", "python3.15", "python3.9", "python3.10") if f'"{name}"' not in have), None)
    if absent is None:
        pytest.skip("every Python release is installed")
    code = "import sys\ndef handler(event, context): return list(sys.version_info[:2])\n"
    assert firelet.deploy(code, runtime=absent)()[0] == 3

    strict = start_firelet("--strict-runtimes")
    function = strict.deploy(code, runtime=absent)
    with pytest.raises(strict.lambda_.exceptions.InvalidRuntimeException) as refused:
        function.call()
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 502
    assert f"{absent} is not installed" in refused.value.response["Message"]


def test_pythons_modules_are_compiled_ahead_where_there_are_many(firelet):
    code = "import functools, os, many\ndef handler(event, context):\n    return [many.LAST, os.path.exists(many.__cached__), sorted(os.listdir('/var/task'))]\n"
    many = "".join(f"def function_{n}():\n    return {n}\n" for n in range(3000)) + "LAST = 2999\n"
    function = firelet.deploy({"app.py": code, "many.py": many, "broken.py": "def ("}, runtime="python3.12")
    deadline = time.monotonic() + 60
    while True:
        # Another version of the configuration has environments of its own; those made before go on as they began.
        variables = {"Variables": {"AT": str(time.monotonic())}}
        firelet.lambda_.update_function_configuration(FunctionName=function.name, Environment=variables)
        firelet.lambda_.get_waiter("function_updated_v2").wait(FunctionName=function.name, WaiterConfig={"Delay": 0.05})
        last, compiled, names = function()
        assert last == 2999
        if compiled:
            break
        assert time.monotonic() < deadline, "never compiled"
    assert names == ["__pycache__", "app.py", "broken.py", "many.py"]


def test_a_small_package_is_left_as_it_is(firelet):
    code = "import os\ndef handler(event, context):\n    return os.listdir('/var/task')\n"
    assert firelet.deploy(code, runtime="python3.12")() == ["app.py"]
