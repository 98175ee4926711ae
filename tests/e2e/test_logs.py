"""Log lines to the letter, the log tail, the JSON format, and the Logs API."""

import json
import math
import re
import time

import pytest

REPORT = re.compile(
    r"REPORT RequestId: (?P<id>[0-9a-f-]{36})\tDuration: (?P<duration>\d+\.\d{2}) ms\tBilled Duration: (?P<billed>\d+) ms"
    r"\tMemory Size: (?P<memory>\d+) MB\tMax Memory Used: (?P<used>\d+) MB\t"
    r"(?:Init Duration: (?P<init>\d+\.\d{2}) ms\t)?\n"
)
PRINTS = "def handler(event, context):\n    print('hello from the function')\n    return 1\n"


def test_the_tail_of_a_cold_and_of_a_warm_invocation(firelet):
    function = firelet.deploy(PRINTS)
    cold, warm = function.call(), function.call()
    for answer, is_cold in ((cold, True), (warm, False)):
        start, end = f"START RequestId: {answer.request_id} Version: $LATEST\n", f"END RequestId: {answer.request_id}\n"
        body = answer.log[answer.log.index("START RequestId") :]
        assert body.startswith(start + "hello from the function\n" + end)
        report = REPORT.fullmatch(body.removeprefix(start + "hello from the function\n" + end))
        assert report, repr(body)
        assert report["id"] == answer.request_id
        assert report["memory"] == "256"
        assert 0 < int(report["used"]) < 256
        assert (report["init"] is not None) == is_cold
        billed = float(report["duration"]) + float(report["init"] or 0)
        assert abs(int(report["billed"]) - math.ceil(billed)) <= 1


def test_the_tail_is_sent_only_when_asked_for(firelet):
    assert firelet.deploy(PRINTS).call(LogType="None").log == ""


def test_the_tail_holds_the_last_four_kibibytes(firelet):
    answer = firelet.deploy("def handler(event, context):\n    for i in range(1000): print('line', i)\n").call()
    assert len(answer.log.encode()) <= 4096
    assert "line 999\nEND RequestId" in answer.log
    assert "line 1\n" not in answer.log


def test_init_start_names_the_runtime(firelet):
    function = firelet.deploy(PRINTS)
    function()
    found = function.wait_for_log(r"\AINIT_START Runtime Version: (\S+)\tRuntime Version ARN: (\S+)\n?\Z")
    assert found[1].startswith("python:3.")
    assert re.fullmatch(r"arn:aws:lambda:us-east-1::runtime:[0-9a-f]{64}", found[2])


def test_a_multi_line_message_stays_one_event(firelet):
    function = firelet.deploy("def handler(event, context): raise KeyError('lost')\n")
    function.call()
    found = function.wait_for_log(r"(?s)\[ERROR\] KeyError: 'lost'.*Traceback")
    assert "app.py" in found.string


def test_logging_has_lambdas_format(firelet):
    function = firelet.deploy(
        "import logging\nlogging.getLogger().setLevel('INFO')\n"
        "def handler(event, context): logging.getLogger().info('noted')\n"
    )
    answer = function.call()
    assert re.search(rf"\[INFO\]\t\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{{3}}Z\t{answer.request_id}\tnoted\n", answer.log)


def test_the_json_format_wraps_platform_and_function_lines(firelet):
    function = firelet.deploy(
        "import logging\ndef handler(event, context): logging.getLogger().warning('noted')\n",
        LoggingConfig={"LogFormat": "JSON"},
    )
    configuration = firelet.lambda_.get_function_configuration(FunctionName=function.name)
    assert configuration["LoggingConfig"] == {
        "LogFormat": "JSON",
        "ApplicationLogLevel": "INFO",
        "SystemLogLevel": "INFO",
        "LogGroup": function.group,
    }
    answer = function.call()
    lines = [json.loads(line) for line in answer.log.splitlines()]
    by_type = {line["type"]: line for line in lines if "type" in line}
    assert by_type["platform.start"]["record"]["requestId"] == answer.request_id
    report = by_type["platform.report"]["record"]
    assert report["requestId"] == answer.request_id
    assert report["status"] == "success"
    assert report["metrics"]["memorySizeMB"] == 256
    assert {"durationMs", "billedDurationMs", "maxMemoryUsedMB", "initDurationMs"} <= set(report["metrics"])
    noted = next(line for line in lines if line.get("message") == "noted")
    assert (noted["level"], noted["requestId"]) == ("WARNING", answer.request_id)


def test_groups_and_streams_are_listed(firelet):
    function = firelet.deploy(PRINTS)
    function()
    function.wait_for_log(r"\AREPORT ")
    groups = firelet.logs.describe_log_groups(logGroupNamePrefix=function.group)["logGroups"]
    assert [group["logGroupName"] for group in groups] == [function.group]
    assert groups[0]["arn"] == f"arn:aws:logs:us-east-1:000000000000:log-group:{function.group}:*"
    streams = firelet.logs.describe_log_streams(logGroupName=function.group, orderBy="LastEventTime", descending=True)
    (stream,) = streams["logStreams"]
    events = firelet.logs.get_log_events(
        logGroupName=function.group, logStreamName=stream["logStreamName"], startFromHead=True
    )["events"]
    words = [event["message"].split()[0] for event in events]
    assert words == ["INIT_START", "START", "hello", "END", "REPORT"]
    assert all(abs(event["timestamp"] / 1000 - time.time()) < 60 for event in events)


def test_get_log_events_pages_forward_and_rests_at_the_end(firelet):
    function = firelet.deploy(PRINTS)
    function()
    function.wait_for_log(r"\AREPORT ")
    stream = firelet.logs.describe_log_streams(logGroupName=function.group)["logStreams"][0]["logStreamName"]
    where = {"logGroupName": function.group, "logStreamName": stream, "startFromHead": True}
    seen, token = [], {}
    while True:
        page = firelet.logs.get_log_events(**where, limit=2, **token)
        if token and page["nextForwardToken"] == token["nextToken"]:
            assert page["events"] == []
            break
        seen += [event["message"] for event in page["events"]]
        token = {"nextToken": page["nextForwardToken"]}
    assert len(seen) == 5


def test_events_are_filtered_by_pattern_and_time(firelet):
    function = firelet.deploy("def handler(event, context): print(event['say'])\n")
    function({"say": "apples and pears"})
    function({"say": "plums"})
    function.wait_for_log("plums")

    def matching(pattern, **more):
        events = firelet.logs.filter_log_events(logGroupName=function.group, filterPattern=pattern, **more)["events"]
        return [event["message"].strip() for event in events]

    assert matching("apples") == ["apples and pears"]
    assert matching('"and pears"') == ["apples and pears"]
    assert matching("?apples ?plums") == ["apples and pears", "plums"]
    assert matching("apples plums") == []
    assert matching("", startTime=int(time.time() * 1000) + 60_000) == []


def test_the_query_of_aws_logs_tail_is_answered(firelet):
    function = firelet.deploy(PRINTS)
    function()
    function.wait_for_log("hello from the function")
    # `aws logs tail` of AWS CLI version 2 asks exactly this, again and again.
    page = firelet.logs.filter_log_events(
        logGroupName=function.group, startTime=int((time.time() - 600) * 1000), interleaved=True
    )
    event = next(event for event in page["events"] if "hello" in event["message"])
    assert set(event) == {"logStreamName", "timestamp", "message", "ingestionTime", "eventId"}


def test_an_unknown_group_is_refused(firelet):
    with pytest.raises(firelet.logs.exceptions.ResourceNotFoundException) as refused:
        firelet.logs.filter_log_events(logGroupName="/aws/lambda/absent")
    assert refused.value.response["Error"]["Message"] == "The specified log group does not exist."


def test_a_log_group_of_ones_own_choice(firelet):
    function = firelet.deploy(PRINTS, LoggingConfig={"LogGroup": "/my/group"})
    function()
    function.group = "/my/group"
    function.wait_for_log("hello from the function")
    stream = firelet.logs.describe_log_streams(logGroupName="/my/group")["logStreams"][0]["logStreamName"]
    assert re.fullmatch(rf"\d{{4}}/\d\d/\d\d/{function.name}\[\$LATEST\][0-9a-f]{{32}}", stream)
