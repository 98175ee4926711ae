"""AWS's own runtime clients, unchanged, against Firelet's Runtime API: started by a wrapper script instead of our bootstrap."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from server import folder_files

PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture(scope="module")
def python_function(firelet):
    """A function whose runtime is `awslambdaric`."""
    spec = importlib.util.find_spec("awslambdaric")
    if spec is None:
        pytest.skip("awslambdaric is not installed: scripts/test installs it")
    site = Path(spec.origin).parents[1]
    files = folder_files(site / "awslambdaric", "awslambdaric/") | folder_files(site / "simplejson", "simplejson/")
    for path in [*site.glob("runtime_client*.so"), site / "snapshot_restore_py.py"]:
        files[path.name] = path.read_bytes()
    files["wrapper"] = '#!/bin/sh\nexport PYTHONPATH=/var/task\nexec "$1" -m awslambdaric "$_HANDLER"\n'
    files["app.py"] = (
        "import os, sys, time, logging\n"
        "count = 0\n"
        "def handler(event, context):\n"
        "    global count\n"
        "    count += 1\n"
        "    if 'fail' in event: raise ValueError(event['fail'])\n"
        "    if 'exit' in event: os._exit(event['exit'])\n"
        "    if 'sleep' in event: time.sleep(event['sleep'])\n"
        "    logging.getLogger().warning('noted')\n"
        "    return {'count': count, 'event': event, 'client': 'awslambdaric' in sys.modules,\n"
        "            'id': context.aws_request_id, 'arn': context.invoked_function_arn,\n"
        "            'left': context.get_remaining_time_in_millis()}\n"
    )
    return firelet.deploy(files, runtime=PYTHON, Timeout=5, variables={"AWS_LAMBDA_EXEC_WRAPPER": "/var/task/wrapper"})


def test_awslambdaric_answers(python_function):
    answer = python_function.call({"text": "ünïcode"})
    found = answer.ok()
    assert found["client"] is True
    assert found["event"] == {"text": "ünïcode"}
    assert found["id"] == answer.request_id
    assert 0 < found["left"] <= 5000
    assert f"{answer.request_id}\tnoted\n" in answer.log
    assert python_function()["count"] == found["count"] + 1


def test_awslambdaric_reports_errors(python_function):
    answer = python_function.call({"fail": "boom"})
    assert answer.error == "Unhandled"
    assert (answer.payload["errorType"], answer.payload["errorMessage"]) == ("ValueError", "boom")


def test_awslambdaric_is_started_anew_after_an_exit_and_a_timeout(python_function):
    assert python_function.call({"exit": 3}).payload["errorType"] == "Runtime.ExitError"
    assert python_function()["count"] == 1
    assert python_function.call({"sleep": 60}).payload["errorType"] == "Sandbox.Timedout"
    assert python_function()["count"] == 1


def test_awslambdaric_reports_a_failed_import(firelet, python_function):
    configuration = {"FunctionName": python_function.name, "Handler": "absent.handler"}
    firelet.lambda_.update_function_configuration(**configuration)
    firelet.lambda_.get_waiter("function_updated_v2").wait(
        FunctionName=python_function.name, WaiterConfig={"Delay": 0.05}
    )
    try:
        payload = python_function.call().payload
        assert payload["errorType"] == "Runtime.ImportModuleError"
        assert payload["errorMessage"] == "Unable to import module 'absent': No module named 'absent'"
    finally:
        firelet.lambda_.update_function_configuration(**{**configuration, "Handler": "app.handler"})
        firelet.lambda_.get_waiter("function_updated_v2").wait(
            FunctionName=python_function.name, WaiterConfig={"Delay": 0.05}
        )


@pytest.fixture(scope="module", params=[20, 22])
def node_function(firelet, request):
    """A function whose runtime is `aws-lambda-ric`."""
    modules = Path(os.environ.get("FIRELET_TEST_NODE_MODULES", "absent"))
    client = modules / "aws-lambda-ric"
    if not (client / "rapid-client.node").exists():
        pytest.skip("aws-lambda-ric is not installed: scripts/test installs it and sets FIRELET_TEST_NODE_MODULES")
    names = ("index.mjs", "package.json", "rapid-client.node")
    files = {f"node_modules/aws-lambda-ric/{name}": (client / name).read_bytes() for name in names}
    files["wrapper"] = '#!/bin/sh\nexec node /var/task/node_modules/aws-lambda-ric/index.mjs "$_HANDLER"\n'
    files["index.js"] = (
        "let count = 0\n"
        "exports.handler = async (event, context) => {\n"
        "  count++\n"
        "  if (event.fail) throw new TypeError(event.fail)\n"
        "  if (event.exit) process.exit(event.exit)\n"
        "  return { count, event, id: context.awsRequestId, node: process.versions.node.split('.')[0] }\n"
        "}\n"
    )
    function = firelet.deploy(
        files,
        runtime=f"nodejs{request.param}.x",
        handler="index.handler",
        variables={"AWS_LAMBDA_EXEC_WRAPPER": "/var/task/wrapper"},
    )
    function.major = request.param
    return function


def test_aws_lambda_ric_answers(node_function):
    answer = node_function.call({"text": "ünïcode"})
    found = answer.ok()
    assert found["event"] == {"text": "ünïcode"}
    assert (found["id"], found["node"]) == (answer.request_id, str(node_function.major))
    assert node_function()["count"] == found["count"] + 1


def test_aws_lambda_ric_reports_errors_and_exits(node_function):
    failed = node_function.call({"fail": "boom"})
    assert (failed.error, failed.payload["errorType"], failed.payload["errorMessage"]) == ("Unhandled", "TypeError", "boom")
    ended = node_function.call({"exit": 5})
    assert ended.payload == {
        "errorType": "Runtime.ExitError",
        "errorMessage": f"RequestId: {ended.request_id} Error: Runtime exited with error: exit status 5",
    }
    assert node_function()["count"] == 1
