"""SnapStart through the API, on namespaces: Python functions go on from images of their processes; others are initialized when they are
published, which finds out whether they can be, and then as without SnapStart. Machines that are restored are checked in the lab."""

import json
import re

import pytest
from server import ROLE, eventually, zipped

SNAP_START = {"ApplyOn": "PublishedVersions"}

# Initializes slowly, and says what for and what it finds.
CODE = """
import json, os, time, urllib.request

KIND = os.environ["AWS_LAMBDA_INITIALIZATION_TYPE"]
print("initialized as", KIND)
if KIND == "snap-start":
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    print("keys among the variables:", sorted(set(names) & set(os.environ)))
    ask = urllib.request.Request(os.environ["AWS_CONTAINER_CREDENTIALS_FULL_URI"])
    ask.add_header("Authorization", os.environ["AWS_CONTAINER_AUTHORIZATION_TOKEN"])
    print("credentials:", json.dumps(sorted(json.load(urllib.request.urlopen(ask)))))
    time.sleep(float(os.environ.get("SECONDS_TO_PUBLISH", "0")))

def handler(event, context):
    return {"kind": KIND, "keys": "AWS_ACCESS_KEY_ID" in os.environ, "version": context.function_version}
"""

FAILING = """
import os
if os.environ["AWS_LAMBDA_INITIALIZATION_TYPE"] == "snap-start":
    raise RuntimeError("no snapshot of me")
def handler(event, context):
    return 1
"""

HOOKED = """
from snapshot_restore_py import register_before_snapshot

@register_before_snapshot
def put_away():
    print("put away")

def handler(event, context):
    return "hooked"
"""

# Takes two seconds to initialize, and counts what becomes of it.
KEPT = """
import os, random, socket, ssl, time, uuid
from snapshot_restore_py import register_after_restore, register_before_snapshot
time.sleep(2)
MARK = str(uuid.uuid4())
ssl.RAND_bytes(8)
DONE = []
open("/tmp/kept", "w").write("kept")
print("initialized as", os.environ["AWS_LAMBDA_INITIALIZATION_TYPE"])

@register_before_snapshot
def put_away():
    DONE.append("put away")
    print("put away")

@register_after_restore
def first():
    DONE.append("first")
    print("restored in", socket.gethostname())

@register_after_restore
def second():
    DONE.append("second")

def handler(event, context):
    if event == "exit":
        os._exit(3)
    time.sleep(1)
    return {
        "mark": MARK, "done": DONE, "random": random.random(), "ssl": ssl.RAND_bytes(8).hex(), "urandom": os.urandom(8).hex(), "host": socket.gethostname(),
        "kind": os.environ["AWS_LAMBDA_INITIALIZATION_TYPE"], "keys": "AWS_ACCESS_KEY_ID" in os.environ,
        "tmp": open("/tmp/kept").read(), "uid": os.getuid(), "version": context.function_version,
    }
"""


def version(server, function, qualifier="1"):
    return server.lambda_.get_function_configuration(FunctionName=function.name, Qualifier=qualifier)


def settled(server, function, qualifier="1"):
    """The version, as it is when it is no longer pending."""

    def found():
        shown = version(server, function, qualifier)
        return shown["State"] != "Pending" and shown

    return eventually(found, what=f"{function.name}:{qualifier} out of Pending")


def optimization(server, function, qualifier="1"):
    return version(server, function, qualifier)["SnapStart"]["OptimizationStatus"]


def cold_starts(function, count):
    """Answers of `count` environments that each had to be started for it."""
    return [answer.ok() for answer in function.parallel(count)]


def published(server, code, **settings):
    """A function with a version that is ready: (the function, it)."""
    function = server.deploy(code, SnapStart=SNAP_START, Publish=True, **settings)
    assert settled(server, function)["State"] == "Active"
    return function, Qualified(server, function)


class Qualified:
    """The first version of a function, to be called as a function is."""

    def __init__(self, server, function):
        self.__class__ = type("Qualified", (type(function),), {})
        type(function).__init__(self, server, function.name + ":1")
        self.group = function.group


def test_a_published_version_is_pending_while_it_is_initialized(firelet):
    function = firelet.deploy(CODE, SnapStart=SNAP_START, variables={"SECONDS_TO_PUBLISH": "1.5"})
    answer = firelet.lambda_.publish_version(FunctionName=function.name)
    assert (answer["Version"], answer["State"], answer["StateReasonCode"]) == ("1", "Pending", "Creating")
    assert answer["StateReason"] == "The function is being created."
    assert answer["SnapStart"] == {"ApplyOn": "PublishedVersions", "OptimizationStatus": "Off"}
    with pytest.raises(firelet.lambda_.exceptions.SnapStartNotReadyException) as refused:
        function.call(Qualifier="1")
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 409
    # What is unpublished is neither, and changes nothing of the version.
    assert function()["kind"] == "on-demand"
    firelet.lambda_.get_waiter("published_version_active").wait(
        FunctionName=function.name, Qualifier="1", WaiterConfig={"Delay": 0.1}
    )
    active = version(firelet, function)
    assert (active["State"], active["LastUpdateStatus"]) == ("Active", "Successful")
    assert active["RevisionId"] != answer["RevisionId"]
    assert active["SnapStart"]["OptimizationStatus"] == "On"
    assert function(Qualifier="1") == {"kind": "snap-start", "keys": False, "version": "1"}
    function.wait_for_log(r"^INIT_REPORT Init Duration: \d+\.\d\d ms\tPhase: snap-start\n$")
    said = [message.strip() for message in function.log_messages()]
    assert said.count("initialized as snap-start") == 1, said
    assert "keys among the variables: []" in said, said
    assert 'credentials: ["AccessKeyId", "Expiration", "SecretAccessKey", "Token"]' in said, said


def test_cold_starts_go_on_from_the_initialized_process(firelet):
    function, first = published(firelet, KEPT)
    assert optimization(firelet, function) == "On"
    answers = cold_starts(first, 8)
    for answer in answers:
        assert answer["mark"] == answers[0]["mark"] and answer["version"] == "1"
        assert answer["done"] == ["put away", "first", "second"]
        assert (answer["kind"], answer["keys"], answer["tmp"]) == ("snap-start", False, "kept")
    hosts = {answer["host"] for answer in answers}
    assert len(hosts) == 8
    for own in ("random", "ssl", "urandom"):
        assert len({answer[own] for answer in answers}) == len(answers), own
    assert len({answer["uid"] for answer in answers}) == len(hosts)
    function.wait_for_log(r"^RESTORE_START Runtime Version: ")
    function.wait_for_log(r"^RESTORE_REPORT Restore Duration: \d+\.\d\d ms\n$")
    function.wait_for_log(r"^REPORT .*\tRestore Duration: \d+\.\d\d ms\tBilled Restore Duration: \d+ ms")
    said = [message.strip() for message in function.log_messages()]
    assert said.count("initialized as snap-start") == 1 and said.count("put away") == 1, said
    assert len({message for message in said if message.startswith("restored in")}) == len(hosts)
    assert sum(message.startswith("INIT_START") for message in said) == 1, said
    # One whose runtime has ended is replaced by another clone.
    for answer in first.parallel(8, "exit"):
        assert answer.payload["errorType"] == "Runtime.ExitError", answer.payload
    again = first()
    assert again["mark"] == answers[0]["mark"] and again["done"] == answers[0]["done"]
    # What is not published initializes.
    assert function()["mark"] != answers[0]["mark"]


def test_a_kept_version_outlives_the_server_and_goes_with_its_function(start_firelet):
    first = start_firelet()
    function, qualified = published(first, KEPT, name="outlives")
    mark = qualified()["mark"]
    kept = first.data_dir / "process-snapshots"
    files = lambda folder: [path.name for path in (kept / folder).iterdir()]  # noqa: E731
    assert (len(files("snapshots")), len(files("keys"))) == (1, 1)
    first.close()
    second = start_firelet(data_dir=first.data_dir)
    function = type(function)(second, function.name)
    eventually(lambda: optimization(second, function) == "On", what="the version's snapshot being found")
    again = Qualified(second, function)()
    assert again["mark"] == mark and again["kind"] == "snap-start"
    # One that is damaged is made again.
    second.close()
    (path,) = (kept / "snapshots").iterdir()
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    third = start_firelet(data_dir=first.data_dir)
    function = type(function)(third, function.name)

    def remade():
        paths = list((kept / "snapshots").glob("*.snapshot"))
        return paths and paths[0].read_bytes() != damaged

    eventually(remade, what="the snapshot being made again")
    answer = Qualified(third, function)()
    assert answer["kind"] == "snap-start" and answer["mark"] != mark
    third.lambda_.delete_function(FunctionName=function.name)
    eventually(lambda: not files("snapshots") and not files("keys"), what="the snapshot being deleted")


def test_what_cannot_be_kept_is_initialized_at_each_cold_start(firelet):
    code = CODE + "\nimport socket\nheld = socket.socket()\n"
    function, first = published(firelet, code)
    assert optimization(firelet, function) == "Off"
    assert first() == {"kind": "on-demand", "keys": True, "version": "1"}
    assert re.search(r"cannot be kept in a snapshot.*cannot be opened again: socket:\[", firelet.log())
    node = "exports.handler = async () => process.env.AWS_LAMBDA_INITIALIZATION_TYPE;"
    function = firelet.deploy({"index.js": node}, runtime="nodejs20.x", handler="index.handler", SnapStart=SNAP_START, Publish=True)
    assert settled(firelet, function)["State"] == "Active"
    assert optimization(firelet, function) == "Off"
    assert function(Qualifier="1") == "on-demand"


def test_a_version_that_cannot_be_initialized_has_failed_with_its_reason(firelet):
    function = firelet.deploy(FAILING, SnapStart=SNAP_START)
    firelet.lambda_.publish_version(FunctionName=function.name)
    failed = settled(firelet, function)
    assert (failed["State"], failed["StateReasonCode"]) == ("Failed", "FunctionError.RuntimeInitError")
    assert failed["StateReason"] == "Runtime.Unknown: no snapshot of me" or "no snapshot of me" in failed["StateReason"]
    with pytest.raises(firelet.lambda_.exceptions.ResourceConflictException, match="no snapshot of me"):
        function.call(Qualifier="1")
    assert function() == 1
    function.wait_for_log(r"^INIT_REPORT .*\tPhase: snap-start\tStatus: error\tError Type: \S+\n$")


def test_hooks_before_the_snapshot_run_and_their_failure_is_the_versions(firelet):
    function = firelet.deploy(HOOKED, SnapStart=SNAP_START)
    firelet.lambda_.publish_version(FunctionName=function.name)
    assert settled(firelet, function)["State"] == "Active"
    function.wait_for_log("^put away")
    assert function(Qualifier="1") == "hooked"
    assert sum(message.startswith("put away") for message in function.log_messages()) == 1

    broken = firelet.deploy(HOOKED.replace('print("put away")', 'raise OSError("nowhere to put it")'), SnapStart=SNAP_START)
    firelet.lambda_.publish_version(FunctionName=broken.name)
    failed = settled(firelet, broken)
    assert failed["State"] == "Failed" and "nowhere to put it" in failed["StateReason"], failed
    assert failed["StateReason"].startswith("Runtime.BeforeSnapshotError"), failed


def test_versions_that_are_published_with_a_change_are_initialized_too(firelet):
    function = firelet.deploy(CODE, SnapStart=SNAP_START, Publish=True)
    assert settled(firelet, function)["State"] == "Active"
    code = zipped({"app.py": CODE + "\n# changed\n"})
    updated = firelet.lambda_.update_function_code(FunctionName=function.name, ZipFile=code, Publish=True)
    assert (updated["Version"], updated["State"]) == ("2", "Pending")
    assert settled(firelet, function, "2")["State"] == "Active"
    assert function(Qualifier="2")["version"] == "2"

    def initialized():
        return sum(message.startswith("initialized as snap-start") for message in function.log_messages()) == 2

    eventually(initialized, what="one initialization for each version")


def test_a_version_goes_on_being_prepared_by_the_next_server(start_firelet):
    first = start_firelet()
    function = first.deploy(CODE, name="restarted", SnapStart=SNAP_START, variables={"SECONDS_TO_PUBLISH": "6"})
    first.lambda_.publish_version(FunctionName=function.name)
    function.wait_for_log("^initialized as snap-start")
    first.close()
    second = start_firelet(data_dir=first.data_dir)
    again = second.lambda_.get_function_configuration(FunctionName=function.name, Qualifier="1")
    assert again["State"] in ("Pending", "Active"), again
    assert settled(second, function)["State"] == "Active"


def test_snap_start_is_refused_where_it_cannot_be(firelet):
    def refused(**settings):
        request = {"Runtime": "python3.12", "Handler": "app.handler", "Role": ROLE, "Code": {"ZipFile": zipped({"app.py": CODE})}}
        with pytest.raises(firelet.lambda_.exceptions.InvalidParameterValueException) as error:
            firelet.lambda_.create_function(FunctionName="refused", SnapStart=SNAP_START, **(request | settings))
        return error.value.response["Error"]["Message"]

    assert refused(Runtime="python3.11") == "python3.11 is not supported for SnapStart enabled functions."
    assert "EphemeralStorage" in refused(EphemeralStorage={"Size": 1024})
    function = firelet.deploy(CODE, SnapStart=SNAP_START, Publish=True)
    settled(firelet, function)
    with pytest.raises(firelet.lambda_.exceptions.InvalidParameterValueException) as error:
        firelet.lambda_.put_provisioned_concurrency_config(
            FunctionName=function.name, Qualifier="1", ProvisionedConcurrentExecutions=1
        )
    text = "Provisioned Concurrency is not supported for SnapStart enabled functions."
    assert error.value.response["Error"]["Message"] == text


def test_a_custom_runtime_may_have_hooks_of_its_own(firelet):
    bootstrap = """#!/bin/sh
api="http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime"
if [ "$AWS_LAMBDA_INITIALIZATION_TYPE" = snap-start ]; then
    echo "waits for its restore"
    curl -s "$api/restore/next"
fi
while true; do
    id=$(curl -sD - -o /tmp/event "$api/invocation/next" | tr -d '\\r' | sed -n 's/^Lambda-Runtime-Aws-Request-Id: //Ip')
    curl -s -X POST --data-binary @/tmp/event "$api/invocation/$id/response" > /dev/null
done
"""
    function = firelet.deploy({"bootstrap": bootstrap}, runtime="provided.al2023", handler="any", SnapStart=SNAP_START)
    firelet.lambda_.publish_version(FunctionName=function.name)
    assert settled(firelet, function)["State"] == "Active"
    assert function({"a": 1}, Qualifier="1") == {"a": 1}
    function.wait_for_log("^waits for its restore")
    assert not any(re.search("RESTORE_START", message) for message in function.log_messages())
    assert json.dumps(version(firelet, function)["SnapStart"]) == '{"ApplyOn": "PublishedVersions", "OptimizationStatus": "Off"}'
