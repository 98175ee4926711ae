"""The Ruby runtime. Lambda's own client is a gem that needs a compiler and a gem server, so what it posts stands here."""

import json
import shutil

import pytest
from runtime_harness import ARN, REQUEST_ID, RUNTIMES, invocation, mask, run, write

RUBY = shutil.which("ruby")
pytestmark = pytest.mark.skipif(RUBY is None, reason="no ruby on this machine")
COMMAND = [RUBY, RUNTIMES / "ruby" / "bootstrap.rb"]

FILES = {
    "app.rb": """
require 'stringio'
def echo(event:, context:)
  event
end
def nothing(event:, context:)
end
def raw(event:, context:)
  StringIO.new("\\x00raw".b)
end
class Oops < StandardError; end
def fails(event:, context:)
  raise Oops, "broken ünï"
end
def argument(event:, context:)
  raise ArgumentError, 'bad'
end
def misnamed(event:, context:)
  no_such_thing_here
end
def exits(event:, context:)
  exit 3
end
def fields(event:, context:)
  { name: context.function_name, version: context.function_version, arn: context.invoked_function_arn,
    memory: context.memory_limit_in_mb, id: context.aws_request_id, group: context.log_group_name,
    stream: context.log_stream_name, identity: context.identity, client: context.client_context,
    remaining: context.get_remaining_time_in_millis.between?(1, 60000), trace: ENV['_X_AMZN_TRACE_ID'] }
end
def logs(event:, context:)
  puts "plain", "lines"
  print "open "
  $stderr.puts "err"
  logger = Logger.new($stdout)
  logger.info("hello ünï")
  logger.debug { "block" }
  logger.level = Logger::WARN
  logger.info("hidden")
  logger.error(RuntimeError.new("an error"))
end
module Deep
  class Inner
    def self.handler(event:, context:)
      "inner"
    end
  end
end
""",
    "dir/nested.rb": "def handler(event:, context:)\n  'nested'\nend\n",
    "broken.rb": "raise 'at init'\n",
    "syntax.rb": "def handler(\n",
    "leaves.rb": "exit 4\n",
}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return write(tmp_path_factory.mktemp("task"), FILES)


@pytest.mark.parametrize(
    "handler,payload,body",
    [
        ("app.echo", {"ü": ["𝄞", None, 1.5]}, '{"ü":["𝄞",null,1.5]}'),
        ("app.echo", "text", '"text"'),
        ("app.nothing", {}, "null"),
        ("app.Deep::Inner.handler", {}, '"inner"'),
        ("dir/nested.handler", {}, '"nested"'),
        ("app.echo", {"large": "x" * 1000000}, None),
    ],
)
def test_responses(task, handler, payload, body):
    result = run(COMMAND, task, handler, [invocation(payload), invocation(payload)])
    assert [post.path for post in result.posts] == ["invocation/%s/response" % REQUEST_ID] * 2, result.stdout
    for post in result.posts:
        assert post.headers["content-type"] == "application/json"
        assert post.json == payload if body is None else post.body.decode() == body


def test_streams_and_other_payloads_are_not_json(task):
    post = run(COMMAND, task, "app.raw", [invocation()]).post
    assert (post.headers["content-type"], post.body) == ("application/unknown", b"\x00raw")
    post = run(COMMAND, task, "app.echo", [invocation(b"<xml/>", **{"Content-Type": "text/xml"})]).post
    assert post.json == "<xml/>"


def test_context_fields(task):
    fields = run(
        COMMAND,
        task,
        "app.fields",
        [invocation(Lambda_Runtime_Client_Context='{"custom":{"k":"v"}}', Lambda_Runtime_Cognito_Identity='{"a":1}')],
    ).post.json
    assert fields == {
        "name": "probe",
        "version": "$LATEST",
        "arn": ARN,
        "memory": "256",
        "id": REQUEST_ID,
        "group": "/aws/lambda/probe",
        "stream": "2026/01/01/[$LATEST]0123456789abcdef",
        "identity": {"a": 1},
        "client": {"custom": {"k": "v"}},
        "remaining": True,
        "trace": "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Parent=9a9197af755a6419;Sampled=1",
    }


@pytest.mark.parametrize(
    "handler,error_type,header,ends",
    [
        ("app.fails", "Function<Oops>", "Function<UserException>", None),
        ("app.argument", "Function<ArgumentError>", "Function<ArgumentError>", None),
        ("app.misnamed", "Function<NameError>", "Function<NameError>", 255),
        ("app.absent", "Function<NoMethodError>", "Function<NoMethodError>", 255),
        ("app.exits", "Function<SystemExit>", "Function<SystemExit>", 255),
    ],
)
def test_errors(task, handler, error_type, header, ends):
    result = run(COMMAND, task, handler, [invocation()])
    post = result.post
    assert post.path == "invocation/%s/error" % REQUEST_ID
    assert list(post.json) == ["errorMessage", "errorType", "stackTrace"]
    assert (post.json["errorType"], post.headers["lambda-runtime-function-error-type"]) == (error_type, header)
    assert result.exit_code == ends
    assert not any("bootstrap.rb" in line for line in post.json["stackTrace"])
    assert post.xray_cause["exceptions"][0]["type"] == error_type
    assert error_type in result.stdout
    if handler == "app.fails":
        assert post.json["errorMessage"] == "broken ünï"
        assert post.json["stackTrace"][0].startswith(str(task / "app.rb") + ":13:in ")


@pytest.mark.parametrize(
    "handler,error_type",
    [
        ("broken.handler", "Init<RuntimeError>"),
        ("syntax.handler", "Init<SyntaxError>"),
        ("absent.handler", "Init<LoadError>"),
        ("leaves.handler", "Init<SystemExit>"),
        ("nodots", "Init<ArgumentError>"),
    ],
)
def test_failed_inits(task, handler, error_type):
    result = run(COMMAND, task, handler, [invocation()])
    assert (result.post.path, result.post.json["errorType"]) == ("init/error", error_type)
    assert result.nexts == 0 and result.exit_code == 252


def test_log_lines(task):
    result = run(COMMAND, task, "app.logs", [invocation()])
    lines = result.stdout.splitlines()
    assert lines[:2] == ["plain", "lines"] and result.stderr == "err\n"
    assert lines[2].startswith("open I, [") and lines[2].endswith("  INFO %s -- : hello ünï" % REQUEST_ID)
    assert lines[3].endswith(" DEBUG %s -- : block" % REQUEST_ID)
    assert lines[4].endswith(" ERROR %s -- : an error (RuntimeError)" % REQUEST_ID) and "hidden" not in result.stdout


def test_log_frames(task):
    result = run(COMMAND, task, "app.logs", [invocation()], log_fd=True)
    kinds = [(frame.kind & 0xFF, frame.message.split(": ")[-1]) for frame in result.frames]
    assert kinds == [
        (0x03, "plain\nlines"),
        (0x03, "err"),
        (0x0F, "hello ünï\n"),
        (0x0B, "block\n"),
        (0x17, "an error (RuntimeError)\n\n"),
        (0x03, "open "),
    ], result.frames
    env = {"AWS_LAMBDA_LOG_FORMAT": "JSON"}
    result = run(COMMAND, task, "app.logs", [invocation()], env, log_fd=True)
    records = [json.loads(mask(f.message)) for f in result.frames if f.kind & 0xFFFF0003 == 0xA55A0002]
    assert [(r["level"], r["message"], r["requestId"]) for r in records] == [
        ("INFO", "hello ünï", REQUEST_ID),
        ("DEBUG", "block", REQUEST_ID),
        ("ERROR", "an error", REQUEST_ID),
    ]
    assert records[2]["errorType"] == "RuntimeError"


def test_a_refused_response_does_not_end_the_environment(task):
    result = run(COMMAND, task, "app.echo", [invocation(status=413), invocation()])
    assert len(result.posts) == 2 and result.exit_code is None
    assert "Http response code: 413" in result.stderr
