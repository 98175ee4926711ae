"""Several invocations at once in one environment: each is served beside the others and known by its own id."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runtime_harness import RUNTIMES, invocation, lay_out_java, run, write

MODULES = Path(os.environ.get("FIRELET_TEST_NODE_MODULES", "/nonexistent"))
NODES = [path for path in (shutil.which("node"), *sorted(MODULES.glob("node-*/bin/node"))) if path]
RUBY, JAVAC, JAVA = shutil.which("ruby"), shutil.which("javac"), shutil.which("java")
PYTHON = [sys.executable, "-S", RUNTIMES / "python" / "bootstrap.py"]
IDS = ["id-%d" % n for n in range(4)]
ENV = {"AWS_LAMBDA_MAX_CONCURRENCY": "4", "AWS_LAMBDA_LOG_FORMAT": "JSON"}


def together(command, task, handler, env=None, payloads=None):
    """Four invocations whose handlers wait for each other: answers by id, and the run."""
    for name in IDS:
        (task / name).unlink(missing_ok=True)
    given = [
        invocation(payload, name, Lambda_Runtime_Trace_Id="Root=" + name, Lambda_Runtime_Aws_Tenant_Id="t-" + name)
        for name, payload in zip(IDS, payloads or [{}] * 4)
    ]
    ran = run(command, task, handler, given, {**ENV, **(env or {})}, log_fd=True)
    return {post.path.split("/")[1]: post for post in ran.posts if post.path.startswith("invocation/")}, ran


def check(answers, ran, id_field):
    assert sorted(answers) == IDS, (ran.posts, ran.stdout, ran.stderr)
    for name, post in answers.items():
        assert post.path.endswith("/response") and post.json["id"] == name, post
        assert post.json["trace"] == "Root=" + name
    records = [json.loads(frame.message) for frame in ran.frames if frame.message.startswith("{")]
    said = sorted((record["message"], record[id_field]) for record in records if record["message"].startswith("serving "))
    assert said == [("serving " + name, name) for name in IDS]
    assert {record["tenantId"] for record in records if record["message"].startswith("serving ")} == {"t-" + name for name in IDS}


def check_one_failed(answers, ran, error_type):
    """The first one failed alone."""
    assert sorted(answers) == IDS, (ran.posts, ran.stdout, ran.stderr)
    assert [post.path.split("/")[2] for _, post in sorted(answers.items())] == ["error", "response", "response", "response"]
    assert answers["id-0"].json["errorType"] == error_type


FAIL_FIRST = [{"fail": True}, {}, {}, {}]

# ---------------------------------------------------------------------------------------------------------------------
# Python

PYTHON_TASK = {
    "app.py": """
import logging, os, time
logging.getLogger().setLevel("INFO")
def meet(name):
    open(name, "w").close()
    until = time.monotonic() + 20
    while not all(os.path.exists("id-%d" % n) for n in range(4)):
        assert time.monotonic() < until, "the others do not come"
        time.sleep(0.005)
def handler(event, context):
    logging.info("serving %s", context.aws_request_id)
    meet(context.aws_request_id)
    return {"id": context.aws_request_id, "trace": os.environ["_X_AMZN_TRACE_ID"], "pid": os.getpid()}
def leaves(event, context):
    meet(context.aws_request_id)
    if event.get("fail"):
        os._exit(3)
def long(event, context):
    meet(context.aws_request_id)
    for _ in range(20):
        print(context.aws_request_id * 20000)
    return {}
""",
    "broken.py": "raise ValueError('at init')\n",
    "dies.py": "import os, time\ntime.sleep(0.1)\nos._exit(7)\n",
}


class TestPython:
    def test_invocations_run_beside_each_other_in_processes(self, tmp_path):
        answers, ran = together(PYTHON, write(tmp_path, PYTHON_TASK), "app.handler")
        check(answers, ran, "requestId")
        assert len({post.json["pid"] for post in answers.values()}) == 4

    def test_a_process_that_ends_fails_its_own_invocation_and_is_replaced(self, tmp_path):
        answers, ran = together(PYTHON, write(tmp_path, PYTHON_TASK), "app.leaves", payloads=FAIL_FIRST)
        check_one_failed(answers, ran, "Runtime.ExitError")
        assert answers["id-0"].json["errorMessage"] == "RequestId: id-0 Error: Runtime exited with error: exit status 3"
        # The fifth asks in the place of the first.
        assert ran.exit_code is None and ran.nexts >= 5

    def test_long_lines_of_several_processes_stay_whole(self, tmp_path):
        _, ran = together(PYTHON, write(tmp_path, PYTHON_TASK), "app.long")
        lines = [frame.message for frame in ran.frames if frame.message.startswith("id-")]
        assert sorted(lines) == sorted([name * 20000 + "\n" for name in IDS] * 20)

    @pytest.mark.parametrize("handler,code", [("broken.handler", 1), ("dies.handler", 7)])
    def test_a_failed_init_takes_all_down(self, tmp_path, handler, code):
        answers, ran = together(PYTHON, write(tmp_path, PYTHON_TASK), handler)
        assert (answers, ran.exit_code, ran.nexts) == ({}, code, 0)
        assert {post.path for post in ran.posts} == ({"init/error"} if handler == "broken.handler" else set())


# ---------------------------------------------------------------------------------------------------------------------
# Node.js

NODE_TASK = {
    "app.js": """
const fs = require('fs');
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
async function meet(name) {
  fs.writeFileSync(name, '');
  for (let n = 0; n < 4000; n++) {
    if ([0, 1, 2, 3].every((id) => fs.existsSync(`id-${id}`))) return;
    await sleep(5);
  }
  throw new Error('the others do not come');
}
exports.handler = async (event, context) => {
  const store = awslambda.InvokeStore;
  await meet(context.awsRequestId);
  if (event.fail) throw new TypeError('this one');
  console.info(`serving ${store.getRequestId()}`);
  store.set('own', context.awsRequestId);
  await sleep(5);
  if (store.get('own') !== context.awsRequestId) throw new Error('mixed up');
  return { id: context.awsRequestId, trace: store.getXRayTraceId() };
};
exports.callback = (event, context, callback) => {
  meet(context.awsRequestId).then(() => callback(null, { id: context.awsRequestId }));
};
exports.stream = awslambda.streamifyResponse(async (event, stream, context) => {
  stream.write('begun ');
  await meet(context.awsRequestId);
  if (event.fail) throw new TypeError('this one');
  stream.end(context.awsRequestId);
});
exports.uncaught = async (event, context) => {
  await meet(context.awsRequestId);
  if (event.fail) setImmediate(() => { throw new RangeError('out of reach'); });
  await sleep(60000);
};
""",
    "broken.js": "throw new Error('at init');",
}


@pytest.mark.skipif(not NODES, reason="no node on this machine")
@pytest.mark.parametrize("node", NODES, ids=lambda path: "node-" + str(Path(path).parent.parent.name))
class TestNode:
    def test_invocations_run_beside_each_other_in_contexts(self, tmp_path, node):
        answers, ran = together([RUNTIMES / "nodejs" / "bootstrap", node], write(tmp_path, NODE_TASK), "app.handler")
        check(answers, ran, "requestId")

    def test_one_that_throws_fails_alone(self, tmp_path, node):
        command = [RUNTIMES / "nodejs" / "bootstrap", node]
        answers, ran = together(command, write(tmp_path, NODE_TASK), "app.handler", payloads=FAIL_FIRST)
        check_one_failed(answers, ran, "TypeError")

    def test_callbacks(self, tmp_path, node):
        answers, _ = together([RUNTIMES / "nodejs" / "bootstrap", node], write(tmp_path, NODE_TASK), "app.callback")
        assert {name: post.json["id"] for name, post in answers.items()} == {name: name for name in IDS}

    def test_streams(self, tmp_path, node):
        command = [RUNTIMES / "nodejs" / "bootstrap", node]
        answers, _ = together(command, write(tmp_path, NODE_TASK), "app.stream", payloads=FAIL_FIRST)
        assert [answers[name].body for name in IDS[1:]] == [b"begun " + name.encode() for name in IDS[1:]]
        assert answers["id-0"].trailers["lambda-runtime-function-error-type"] == "TypeError"

    def test_an_error_that_nobody_caught_is_reported_with_its_invocation(self, tmp_path, node):
        command = [RUNTIMES / "nodejs" / "bootstrap", node]
        answers, ran = together(command, write(tmp_path, NODE_TASK), "app.uncaught", payloads=FAIL_FIRST)
        assert list(answers) == ["id-0"] and ran.exit_code == 129
        assert answers["id-0"].json["errorMessage"] == "out of reach"

    def test_a_failed_init_is_one(self, tmp_path, node):
        answers, ran = together([RUNTIMES / "nodejs" / "bootstrap", node], write(tmp_path, NODE_TASK), "broken.handler")
        assert (ran.post.path, ran.exit_code, ran.nexts) == ("init/error", 129, 0)


# ---------------------------------------------------------------------------------------------------------------------
# Ruby

RUBY_TASK = {
    "app.rb": """
require 'logger'
LOGGER = Logger.new($stdout)
def meet(name)
  File.write(name, '')
  4000.times do
    return if 4.times.all? { |n| File.exist?("id-#{n}") }
    sleep 0.005
  end
  raise 'the others do not come'
end
def handler(event:, context:)
  meet(context.aws_request_id)
  raise ArgumentError, 'this one' if event['fail'] == 1
  exit(3) if event['fail']
  Thread.new { LOGGER.info("serving #{context.aws_request_id}") }.join
  { id: context.aws_request_id }
end
""",
}


@pytest.mark.skipif(RUBY is None, reason="no ruby on this machine")
class TestRuby:
    COMMAND = [RUBY, RUNTIMES / "ruby" / "bootstrap.rb"]

    def test_invocations_run_beside_each_other_in_threads(self, tmp_path):
        answers, ran = together(self.COMMAND, write(tmp_path, RUBY_TASK), "app.handler")
        assert {name: post.json["id"] for name, post in answers.items()} == {name: name for name in IDS}
        inherits = subprocess.run([RUBY, "-e", "exit Fiber.respond_to?(:[])"]).returncode == 0
        if inherits:
            records = [json.loads(frame.message) for frame in ran.frames if frame.message.startswith("{")]
            assert sorted((r["message"], r["requestId"]) for r in records) == [("serving " + name, name) for name in IDS]

    @pytest.mark.parametrize("how,error_type", [(1, "Function<ArgumentError>"), (2, "Function<SystemExit>")])
    def test_one_that_fails_fails_alone(self, tmp_path, how, error_type):
        payloads = [{"fail": how}, {}, {}, {}]
        answers, ran = together(self.COMMAND, write(tmp_path, RUBY_TASK), "app.handler", payloads=payloads)
        check_one_failed(answers, ran, error_type)
        assert ran.exit_code is None


# ---------------------------------------------------------------------------------------------------------------------
# Java

JAVA_TASK = {
    "demo/App.java": """
package demo;
import com.amazonaws.services.lambda.runtime.*;
import java.nio.file.*;
import java.util.*;
public class App implements RequestHandler<Map<String, Object>, Map<String, Object>> {
    static void meet(String name) throws Exception {
        Files.writeString(Path.of(name), "");
        for (int n = 0; n < 4000; n++) {
            int there = 0;
            for (int id = 0; id < 4; id++) if (Files.exists(Path.of("id-" + id))) there++;
            if (there == 4) return;
            Thread.sleep(5);
        }
        throw new IllegalStateException("the others do not come");
    }
    public Map<String, Object> handleRequest(Map<String, Object> event, Context context) {
        try { meet(context.getAwsRequestId()); } catch (Exception e) { throw new RuntimeException(e); }
        if (event.containsKey("fail")) throw new IllegalArgumentException("this one");
        context.getLogger().log("serving " + context.getAwsRequestId());
        if (System.getProperty("com.amazonaws.xray.traceHeader") != null) throw new IllegalStateException("whose trace?");
        return Map.of("id", context.getAwsRequestId(), "trace", context.getXrayTraceId());
    }
}
""",
}


@pytest.fixture(scope="module")
def java(tmp_path_factory):
    if not (JAVAC and JAVA):
        pytest.skip("no JDK on this machine")
    runtime, task = tmp_path_factory.mktemp("runtime"), tmp_path_factory.mktemp("task")
    lay_out_java(runtime, JAVAC)
    write(task, JAVA_TASK)
    path = "%s:%s" % (runtime / "java", runtime / "java-api")
    subprocess.run([JAVAC, "-nowarn", "-cp", path, "-d", task, *sorted(task.rglob("*.java"))], check=True)
    return [runtime / "bootstrap", JAVA], task


class TestJava:
    def test_invocations_run_beside_each_other_in_threads(self, java):
        command, task = java
        answers, ran = together(command, task, "demo.App")
        check(answers, ran, "AWSRequestId")

    def test_one_that_throws_fails_alone(self, java):
        command, task = java
        answers, ran = together(command, task, "demo.App", payloads=FAIL_FIRST)
        check_one_failed(answers, ran, "java.lang.IllegalArgumentException")
