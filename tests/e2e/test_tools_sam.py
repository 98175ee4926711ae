"""The SAM CLI: `sam remote invoke` and `sam logs`, the real program."""

import json

from conftest import tool

ECHO = "def handler(event, context):\n    print('sam said', event['word'])\n    return {'heard': event['word']}\n"
FAILS = "def handler(event, context):\n    raise ValueError('no')\n"


def sam(server, *arguments):
    program = tool("sam")
    environment = ("env", "SAM_CLI_TELEMETRY=0", "AWS_ENDPOINT_URL=" + server.url)
    return server.run(*environment, program, *arguments)


def arn(server, function):
    return server.lambda_.get_function(FunctionName=function.name)["Configuration"]["FunctionArn"]


def test_sam_remote_invoke_and_logs(firelet):
    function = firelet.deploy(ECHO, name="sam-echo")
    done = sam(firelet, "remote", "invoke", arn(firelet, function), "--event", '{"word": "hello"}')
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.strip().splitlines()[-1]) == {"heard": "hello"}
    # SAM shows the tail of the log on standard error.
    assert "sam said hello" in done.stderr and "REPORT RequestId" in done.stderr

    function.wait_for_log("sam said hello")
    done = sam(firelet, "logs", "--cw-log-group", function.group)
    assert done.returncode == 0, done.stderr
    assert "sam said hello" in done.stdout
    done = sam(firelet, "logs", "--cw-log-group", function.group, "--filter", "absent words")
    assert "sam said hello" not in done.stdout


def test_sam_remote_invoke_shows_the_function_s_error(firelet):
    function = firelet.deploy(FAILS, name="sam-fails")
    done = sam(firelet, "remote", "invoke", arn(firelet, function), "--event", "{}")
    assert "ValueError" in done.stdout + done.stderr
