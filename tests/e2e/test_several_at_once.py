"""Functions that name the capacity provider of this host: several invocations at once in one environment."""

import json

import pytest

PROVIDER = "arn:aws:lambda:us-east-1:000000000000:capacity-provider:firelet"

PYTHON = """
import logging, os, time
logging.getLogger().setLevel("INFO")
def handler(event, context):
    logging.info("serving %s", context.aws_request_id)
    if event.get("leave"):
        os._exit(3)
    time.sleep(event.get("seconds", 0))
    return [os.environ["AWS_LAMBDA_LOG_STREAM_NAME"], os.getpid(), context.aws_request_id, os.environ["AWS_LAMBDA_MAX_CONCURRENCY"]]
"""

NODE = """
let running = 0, most = 0;
exports.handler = async (event, context) => {
  most = Math.max(most, ++running);
  await new Promise((resolve) => setTimeout(resolve, (event.seconds || 0) * 1000));
  running--;
  return [process.env.AWS_LAMBDA_LOG_STREAM_NAME, process.pid, context.awsRequestId, most];
};
"""


def several(count):
    return {"CapacityProviderConfig": {"LambdaManagedInstancesCapacityProviderConfig": {
        "CapacityProviderArn": PROVIDER, "PerExecutionEnvironmentMaxConcurrency": count}}}  # fmt: skip


def warm(function, seconds=1):
    """Invocations until one environment has shown that it serves all of four: as many processes as it may have."""
    function({"seconds": 0})
    return [answer.ok() for answer in function.parallel(4, {"seconds": seconds})]


def test_a_python_function_has_a_process_for_each_invocation(firelet):
    function = firelet.deploy(PYTHON, MemorySize=1024, **several(4))
    found = warm(function)
    assert len({stream for stream, *_ in found}) == 1, found
    assert len({pid for _, pid, *_ in found}) == len({request for _, _, request, _ in found}) == 4
    assert {maximum for *_, maximum in found} == {"4"}
    for _, _, request, _ in found:
        function.wait_for_log('(?s)"requestId": ?"%s"' % request)


def test_one_that_leaves_or_runs_out_of_time_fails_alone(firelet):
    function = firelet.deploy(PYTHON, MemorySize=1024, Timeout=3, **several(4))
    stream = warm(function)[0][0]
    left = function.call({"leave": True})
    assert left.error == "Unhandled" and left.payload["errorType"] == "Runtime.ExitError", left.payload
    late = function.call({"seconds": 30})
    assert late.error == "Unhandled" and "Task timed out after 3.00 seconds" in late.payload["errorMessage"]
    assert function({"seconds": 0})[0] == stream


@pytest.mark.parametrize("runtime", ["nodejs20.x"])
def test_a_node_function_has_them_in_one_process(firelet, runtime):
    function = firelet.deploy({"app.js": NODE}, runtime=runtime, MemorySize=512, **several(4))
    found = warm(function)
    assert len({(stream, pid) for stream, pid, *_ in found}) == 1, found
    assert max(most for *_, most in found) == 4


def test_versions_keep_what_they_were_published_with(firelet):
    function = firelet.deploy(PYTHON, MemorySize=1024, **several(4))
    firelet.lambda_.publish_version(FunctionName=function.name)
    firelet.lambda_.update_function_configuration(FunctionName=function.name, **several(1))
    firelet.lambda_.get_waiter("function_updated_v2").wait(FunctionName=function.name, WaiterConfig={"Delay": 0.05})
    shown = [
        firelet.lambda_.get_function_configuration(FunctionName=function.name, Qualifier=qualifier)["CapacityProviderConfig"]
        for qualifier in ("1", "$LATEST")
    ]
    numbers = [config["LambdaManagedInstancesCapacityProviderConfig"]["PerExecutionEnvironmentMaxConcurrency"] for config in shown]
    assert numbers == [4, 1], json.dumps(shown)
