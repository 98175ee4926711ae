"""Reserved concurrency with real invocations: a ceiling over all versions of a function, and places that nobody else takes."""

import threading

import pytest
from botocore.exceptions import ClientError
from server import Function, eventually

WAITING = (
    "import time\n"
    "def handler(event, context):\n"
    "    time.sleep(event.get('seconds', 0))\n"
    "    return context.function_version\n"
)


def throttled(function, **arguments):
    """The reason for which an invocation is refused, or None."""
    try:
        function.call({}, **arguments)
    except ClientError as error:
        assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 429
        assert error.response["Error"]["Code"] == "TooManyRequestsException"
        return error.response["Reason"]
    return None


class Background:
    """Invocations that go on for some seconds while the test does something else. They are all let in when this is made."""

    def __init__(self, function, qualifiers):
        self.answers = []
        self.threads = [threading.Thread(target=self.call, args=(function, qualifier)) for qualifier in qualifiers]
        begun = lambda: sum(message.startswith("START ") for message in function.log_messages())  # noqa: E731
        before = begun()
        for thread in self.threads:
            thread.start()
        eventually(lambda: begun() == before + len(qualifiers), what="the start of the invocations")

    def call(self, function, qualifier):
        self.answers.append(function.call({"seconds": 4}, Qualifier=qualifier))

    def join(self):
        for thread in self.threads:
            thread.join()
        return sorted(answer.ok() for answer in self.answers)


def test_a_reservation_is_a_limit_over_all_versions(firelet):
    function = firelet.deploy(WAITING, Publish=True)
    firelet.lambda_.put_function_concurrency(FunctionName=function.name, ReservedConcurrentExecutions=2)
    running = Background(function, ["$LATEST", "1"])
    for qualifier in ("$LATEST", "1"):
        assert throttled(function, Qualifier=qualifier) == "ReservedFunctionConcurrentInvocationLimitExceeded"
    # More is granted at once.
    firelet.lambda_.put_function_concurrency(FunctionName=function.name, ReservedConcurrentExecutions=3)
    assert throttled(function, Qualifier="1") is None
    assert running.join() == ["$LATEST", "1"]
    firelet.lambda_.delete_function_concurrency(FunctionName=function.name)
    assert throttled(function) is None


def test_a_reservation_of_zero_is_an_off_switch(firelet):
    function = firelet.deploy(WAITING)
    assert throttled(function) is None
    firelet.lambda_.put_function_concurrency(FunctionName=function.name, ReservedConcurrentExecutions=0)
    assert throttled(function) == "ReservedFunctionConcurrentInvocationLimitExceeded"
    firelet.lambda_.delete_function_concurrency(FunctionName=function.name)
    assert throttled(function) is None


def test_a_reservation_holds_after_a_restart_and_others_go_without_it(start_firelet, tmp_path):
    (tmp_path / "small.toml").write_text("account_concurrency = 101\n")
    arguments = ("--config", str(tmp_path / "small.toml"), "--network", "off")
    server = start_firelet(*arguments)
    names = [server.deploy(WAITING).name for _ in range(2)]
    server.lambda_.put_function_concurrency(FunctionName=names[0], ReservedConcurrentExecutions=1)
    server.stop()
    server = start_firelet(*arguments)
    settings = server.lambda_.get_account_settings()
    assert settings["AccountLimit"]["UnreservedConcurrentExecutions"] == 100
    assert settings["AccountUsage"]["FunctionCount"] == 2
    with pytest.raises(ClientError) as refused:
        server.lambda_.put_function_concurrency(FunctionName=names[1], ReservedConcurrentExecutions=1)
    assert "below its minimum value of [100]" in refused.value.response["Error"]["Message"]
    function = Function(server, names[0])
    running = Background(function, ["$LATEST"])
    assert throttled(function) == "ReservedFunctionConcurrentInvocationLimitExceeded"
    assert throttled(Function(server, names[1])) is None
    running.join()
