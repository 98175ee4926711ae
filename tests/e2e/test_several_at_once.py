"""Functions that name the capacity provider of this host: several invocations at once in one environment."""

import json
import threading

import pytest
from botocore.exceptions import ClientError

from server import Function, eventually

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


class Scaled:
    """Version 1 of a function, and its scaling configuration."""

    def __init__(self, firelet, name):
        self.firelet, self.function = firelet, Function(firelet, name)
        self.names = {"FunctionName": name, "Qualifier": "1"}

    def scale(self, least, most):
        config = {"MinExecutionEnvironments": least, "MaxExecutionEnvironments": most}
        return self.firelet.lambda_.put_function_scaling_config(FunctionScalingConfig=config, **self.names)["FunctionState"]

    def shown(self):
        answer = self.firelet.lambda_.get_function_scaling_config(**self.names)
        return [answer.get(of + "FunctionScalingConfig") for of in ("Applied", "Requested")]

    def wait_applied(self, least, most):
        config = {"MinExecutionEnvironments": least, "MaxExecutionEnvironments": most}
        eventually(lambda: self.shown() == [config, None], what=f"{least} to {most} environments")

    def __call__(self, seconds=0):
        return self.function({"seconds": seconds}, Qualifier="1")

    def crowd(self, count, seconds):
        """So many invocations at once: what they returned, and the errors of those that were refused."""
        barrier, answers, errors = threading.Barrier(count), [], []

        def one():
            barrier.wait()
            try:
                answers.append(self(seconds))
            except ClientError as error:
                errors.append(error.response)

        threads = [threading.Thread(target=one) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers, errors


def test_a_version_has_no_fewer_and_no_more_environments_than_it_is_told(start_firelet):
    firelet = start_firelet()
    name = firelet.deploy(PYTHON, MemorySize=512, Publish=True, **several(2)).name
    version = Scaled(firelet, name)
    assert version.shown() == [None, None]
    assert version.scale(2, 2) == "Active"
    version.wait_applied(2, 2)
    # Both are there already, with two slots each; who comes beyond that finds no room, and nothing is made for him.
    answers, refused = version.crowd(6, 3)
    streams = {stream for stream, *_ in answers}
    assert len(answers) == 4 and len(streams) == 2, answers
    assert [error["Error"]["Code"] for error in refused] == ["TooManyRequestsException"] * 2, refused
    assert {error["Reason"] for error in refused} == {"ConcurrentInvocationLimitExceeded"}, refused
    firelet.close()

    firelet = start_firelet()
    version = Scaled(firelet, name)
    version.wait_applied(2, 2)
    answers, refused = version.crowd(5, 3)
    assert len(answers) == 4 and len(refused) == 1, (answers, refused)
    assert version.scale(0, 1) == "Active"
    version.wait_applied(0, 1)
    answers, refused = version.crowd(2, 1)
    assert len({stream for stream, *_ in answers}) == 1 and not refused, (answers, refused)
    # Without numbers there is nothing to be told of.
    firelet.lambda_.put_function_scaling_config(**version.names)
    assert version.shown() == [None, None]
    answers, refused = version.crowd(5, 1)
    assert len(answers) == 5, refused


def test_a_version_without_environments_is_deactivated(firelet):
    version = Scaled(firelet, firelet.deploy(PYTHON, MemorySize=512, Publish=True, **several(2)).name)
    stream = version()[0]
    assert version.scale(0, 0) == "Deactivated"
    assert firelet.lambda_.get_function_configuration(**version.names)["State"] == "Deactivated"
    with pytest.raises(firelet.lambda_.exceptions.ResourceConflictException, match="state: Deactivated"):
        version()
    assert version.scale(1, 1) == "Active"
    assert version()[0] != stream
