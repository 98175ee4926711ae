"""The beginner's lab, typed into the AWS CLI."""

import json
from pathlib import Path

import pytest
from conftest import need


@pytest.fixture(scope="module")
def lab(firelet, tmp_path_factory):
    """The folder in which the lab ran."""
    for program in ("aws", "jq", "zip"):
        need(program)
    folder = tmp_path_factory.mktemp("lab")
    done = firelet.run("bash", Path(__file__).with_name("lab.sh"), cwd=folder, timeout=170)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{firelet.log()[-3000:]}"
    return folder


def read(path):
    return json.loads(path.read_text())


def test_the_function_is_created_as_described(lab):
    created = read(lab / "created.json")
    assert created["FunctionArn"] == "arn:aws:lambda:us-east-1:000000000000:function:lab-fn"
    assert created["Role"] == "arn:aws:iam::000000000000:role/lab-lambda"
    assert (created["MemorySize"], created["Timeout"], created["State"]) == (512, 30, "Pending")


def test_the_first_invocation_is_a_cold_start(lab):
    assert read(lab / "invoked.json") == {"StatusCode": 200, "ExecutedVersion": "$LATEST"}
    out = read(lab / "out.json")
    assert 0 <= out["now"] - out["init_ts"] < 5


def test_ten_at_once_all_answer(lab):
    # How many environments they meet depends on how many of the ten CLI processes get to their request while another's is
    # answered: on a small machine the processes start one after the other, and each invocation takes a few milliseconds.
    # That overlapping invocations get an environment each is test_concurrency's.
    streams = (lab / "parallel.txt").read_text().split()
    assert 1 <= len(streams) <= 10
    assert all("[$LATEST]" in stream for stream in streams)
    assert len(list(lab.glob("out-*.json"))) == 10


def test_five_in_series_meet_one_warm_environment(lab):
    streams = (lab / "serial.txt").read_text().split()
    assert len(streams) == 5
    assert len(set(streams)) == 1


def test_provisioned_concurrency_becomes_ready(lab):
    assert read(lab / "published.json")["Version"] == "1"
    asked = read(lab / "provisioned.json")
    assert (asked["Status"], asked["RequestedProvisionedConcurrentExecutions"]) == ("IN_PROGRESS", 2)
    later = read(lab / "provisioned-later.json")
    assert later["Status"] == "READY", later
    assert later["AvailableProvisionedConcurrentExecutions"] == 2
    assert later["AllocatedProvisionedConcurrentExecutions"] == 2


def test_nothing_is_left_after_the_tear_down(lab, firelet):
    with pytest.raises(firelet.lambda_.exceptions.ResourceNotFoundException):
        firelet.lambda_.get_function(FunctionName="lab-fn")
    with pytest.raises(firelet.iam.exceptions.NoSuchEntityException):
        firelet.iam.get_role(RoleName="lab-lambda")
