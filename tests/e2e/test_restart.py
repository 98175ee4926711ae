"""What survives a restart, and what must not be left behind, however Firelet ends."""

import signal

from server import eventually
from traces import alive, runtimes, settled_traces, traces

COUNTER = "count = 0\ndef handler(event, context):\n    global count; count += 1; return count\n"


def test_functions_versions_code_and_logs_survive_a_restart(start_firelet, tmp_path):
    first = start_firelet()
    function = first.deploy(COUNTER, name="durable", variables={"COLOUR": "green"})
    assert function() == 1
    first.lambda_.publish_version(FunctionName="durable")
    trust = '{"Version":"2012-10-17","Statement":[]}'
    first.iam.create_role(RoleName="durable", AssumeRolePolicyDocument=trust)
    function.wait_for_log(r"\AREPORT ")
    before = first.lambda_.get_function(FunctionName="durable")["Configuration"]
    assert first.stop() == 0

    second = start_firelet()
    assert second.lambda_.get_function(FunctionName="durable")["Configuration"] == before
    versions = second.lambda_.list_versions_by_function(FunctionName="durable")["Versions"]
    assert [version["Version"] for version in versions] == ["$LATEST", "1"]
    assert second.iam.get_role(RoleName="durable")["Role"]["RoleName"] == "durable"
    function.server = second
    assert sum(message.startswith("REPORT ") for message in function.log_messages()) == 1
    assert function() == 1
    assert function(Qualifier="1") == 1


def test_an_orderly_stop_leaves_nothing(start_firelet, tmp_path):
    before = settled_traces(tmp_path)
    server = start_firelet()
    function = server.deploy("import time\ndef handler(event, context): time.sleep(0.3)\n")
    function.parallel(3)
    below = server.descendants()
    assert below, "sandboxes are expected below the server"
    assert traces(tmp_path) - before, "sandboxes are expected to show on the host"
    assert server.stop() == 0
    eventually(lambda: not alive(below), what=f"the end of {below}")
    eventually(lambda: not traces(tmp_path) - before, what=f"the end of {traces(tmp_path) - before}")


def test_a_killed_server_leaves_nothing_once_it_is_back(start_firelet, tmp_path):
    before = settled_traces(tmp_path)
    server = start_firelet()
    function = server.deploy(COUNTER, name="killed")
    assert function() == 1
    below = server.descendants()
    assert below, "sandboxes are expected below the server"
    server.stop(signal.SIGKILL)
    # Nobody has to come back for the processes to end: they die with the server.
    eventually(lambda: not alive(below), what=f"the end of {below}")

    again = start_firelet()
    function.server = again
    assert function() == 1
    assert again.stop() == 0
    left = traces(tmp_path) - before
    eventually(lambda: not traces(tmp_path) - before, what=f"the end of {left}")


def test_an_answered_create_survives_a_kill(start_firelet, tmp_path):
    server = start_firelet()
    for index in range(5):
        server.deploy(COUNTER, name=f"acknowledged-{index}")
    server.stop(signal.SIGKILL)
    again = start_firelet()
    names = {found["FunctionName"] for found in again.lambda_.list_functions()["Functions"]}
    assert names == {f"acknowledged-{index}" for index in range(5)}


def test_a_second_server_on_the_same_data_is_refused(start_firelet, tmp_path):
    start_firelet()
    try:
        start_firelet()
    except AssertionError as error:
        assert "in use" in str(error) or "another firelet" in str(error), error
    else:
        raise AssertionError("two servers run on one data directory")


def test_idle_environments_are_retired(start_firelet):
    # A runtime that waits for a function would be counted too.
    server = start_firelet("--idle-timeout-secs", "2", "--prestart", "off")
    function = server.deploy(COUNTER)
    assert function() == 1
    assert runtimes(server), "the environment is expected to stay for two seconds"
    eventually(lambda: not runtimes(server), what="the end of the idle environment")
    assert function() == 1
