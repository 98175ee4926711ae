"""The Node.js runtime beside Lambda's own client, aws-lambda-ric: what they post and log must be the same.

The client has a native part that npm builds: `npm install --prefix runtimes/tests aws-lambda-ric`, or AWS_LAMBDA_RIC
names the directory of the package.
"""

import base64
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from runtime_harness import ARN, REQUEST_ID, RUNTIMES, invocation, mask, run, write

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="no node on this machine")
OURS = [RUNTIMES / "nodejs" / "bootstrap", NODE]
RIC = Path(os.environ.get("AWS_LAMBDA_RIC", Path(__file__).parent / "node_modules" / "aws-lambda-ric"))
# Version 4 has its parts at the top, version 3 in folders.
NATIVE = [RIC / path for path in ("rapid-client.node", "dist/rapid-client.node", "build/Release/rapid-client.node")]
HAS_OFFICIAL = any(path.exists() for path in NATIVE)
needs_official = pytest.mark.skipif(not HAS_OFFICIAL, reason="aws-lambda-ric is not installed, or not built")
OFFICIAL = [NODE, next((path for path in (RIC / "index.mjs", RIC / "bin" / "index.mjs") if path.exists()), RIC)]
ENV = {"AWS_EXECUTION_ENV": "AWS_Lambda_nodejs20.x"}

FILES = {
    "app.js": r"""
exports.echo = async (event) => event;
exports.nothing = async () => {};
exports.sync = () => 'ignored';
exports.text = async () => 'grüß 𝄞 \u2028 \x7f';
exports.callback = (event, context, callback) => { setTimeout(() => callback(null, event), 5); };
exports.callbackNow = (event, context, callback) => {
  context.callbackWaitsForEmptyEventLoop = false;
  setTimeout(() => {}, 60000);
  callback(null, 'now');
};
exports.callbackWaits = (event, context, callback) => {
  callback(null, 'first');
  setTimeout(() => console.log('before the answer'), 20);
};
exports.callbackError = (event, context, callback) => callback(new TypeError('bad'));
exports.callbackText = (event, context, callback) => callback('a text');
exports.callbackObject = (event, context, callback) => callback({ a: 1 });
exports.succeed = (event, context) => { context.succeed({ done: 1 }); context.fail(new Error('too late')); };
exports.fail = (event, context) => context.fail(new RangeError('failed'));
exports.failNothing = (event, context) => context.fail();
exports.done = (event, context) => context.done(null, [1]);
exports.rejects = async () => { throw new ReferenceError('ünï \x7f\nsecond'); };
exports.rejectsText = async () => { throw 'only text'; };
exports.rejectsNull = async () => { throw null; };
exports.throws = () => { throw new Error('thrown'); };
class Own extends Error { constructor() { super('own'); this.name = 'OwnError'; this.extra = { a: 1 }; this.code = 'E1'; } }
exports.own = async () => { throw new Own(); };
exports.cyclic = async () => { const a = {}; a.a = a; return a; };
exports.bigint = async () => ({ n: 10n });
exports.never = () => new Promise(() => {});
exports.unhandled = async () => { Promise.reject(new Error('nobody cares')); await new Promise((r) => setTimeout(r, 5000)); };
exports.uncaught = async () => { setTimeout(() => { throw new Error('from a timer'); }, 1); await new Promise((r) => setTimeout(r, 5000)); };
exports.exits = async () => process.exit(3);
exports.fields = async (event, context) => ({
  ...context, remaining: context.getRemainingTimeInMillis() > 0 && context.getRemainingTimeInMillis() <= 60000,
  trace: process.env._X_AMZN_TRACE_ID, cwd: process.cwd(), keys: Object.keys(context).sort(),
});
exports.logs = async (event) => {
  console.log('hello %s %d', 'ünï', 5, { a: [1] });
  console.log('two\nlines');
  console.info({ deep: { er: 1 } });
  console.debug('debug'); console.trace('trace'); console.warn('warn'); console.error('error', new Error('inside').message);
  console.fatal('fatal');
  console.log();
  console.log(null); console.log(undefined); console.log('a', undefined);
  console.error(Object.assign(new Error('as object'), { stack: 'Error: as object\n    at somewhere' }));
  console.error('with', Object.assign(new Error('second'), { stack: 'Error: second\n    at somewhere' }));
  const cyclic = {}; cyclic.self = cyclic; console.log(cyclic);
};
exports.deep = { er: { handler: async () => 'deep' } };
exports.notFunction = 5;

exports.stream = awslambda.streamifyResponse(async (event, stream, context) => {
  stream.setContentType('text/plain');
  stream.write('one,'); stream.write(Buffer.from('two,')); stream.write({ three: 3 });
  await new Promise((r) => setTimeout(r, 5));
  stream.end('four');
});
exports.streamEmpty = awslambda.streamifyResponse(async (event, stream) => { stream.end(); });
exports.streamHttp = awslambda.streamifyResponse(async (event, stream) => {
  stream = awslambda.HttpResponseStream.from(stream, { statusCode: 201, headers: { 'x-a': 'b' } });
  stream.write('body');
  stream.end();
});
exports.streamPipe = awslambda.streamifyResponse(async (event, stream) => {
  const { pipeline } = require('stream/promises');
  const { Readable } = require('stream');
  await pipeline(Readable.from([Buffer.alloc(200000, 'x'), Buffer.from('end')]), stream);
});
exports.streamFails = awslambda.streamifyResponse(async (event, stream) => { stream.write('part'); throw new Error('midway'); });
exports.streamFailsFirst = awslambda.streamifyResponse(async () => { throw new Error('at once'); });
exports.streamSync = awslambda.streamifyResponse((event, stream) => { stream.end('x'); });
exports.streamReturns = awslambda.streamifyResponse(async (event, stream) => { stream.end('x'); return 5; });
exports.streamLate = awslambda.streamifyResponse(async (event, stream) => { stream.write('x'); stream.setContentType('late/late'); });
""",
    "esm.mjs": "await Promise.resolve();\nexport const handler = async (e) => ({ esm: e, dir: typeof require });\n",
    "cjs.cjs": "exports.handler = async () => 'cjs';\n",
    "module/package.json": '{"type": "module"}',
    "module/app.js": "export const handler = async () => import.meta.url.endsWith('module/app.js');\n",
    "sub/dir/app.js": "exports.handler = async () => __filename.endsWith('sub/dir/app.js');\n",
    "node_modules/dep/index.js": "exports.handler = async () => 'dep';\n",
    "imports.js": "require('does-not-exist');\n",
    "syntax.js": "exports.handler = async ( => {};\n",
    "raises.js": "throw new TypeError('at init');\n",
    "raises_text.js": "throw 'text at init';\n",
    "rejects_init.js": "Promise.reject(new Error('unhandled at init'));\nexports.handler = async () => new Promise((r) => setTimeout(r, 5000));\n",
    "leaves.js": "process.exit(4);\n",
}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return write(tmp_path_factory.mktemp("task"), FILES)


def both(task, handler, invocations, env=None, **options):
    ours = run(OURS, task, handler, invocations, {**ENV, **(env or {})}, **options)
    theirs = run(OFFICIAL, task, handler, invocations, {**ENV, **(env or {})}, arguments=[handler], **options)
    theirs.stdout = re.sub(r"^Executing '.*\n", "", theirs.stdout)
    return ours, theirs


def own_frame(line):
    """Frames of a runtime or of Node itself, which cannot be the same."""
    return any(mark in line for mark in ("bootstrap.cjs", "runtime-api.cjs", "streaming.cjs", "aws-lambda-ric", "(node:", "at node:", "console.cjs", "errors.cjs"))  # fmt: skip


def normal(body):
    try:
        value = json.loads(body)
    except ValueError:
        return body
    if isinstance(value, dict) and isinstance(value.get("trace"), list):
        value["trace"] = [line for line in value["trace"] if not own_frame(line)]
    return value


def normal_cause(post):
    cause = post.xray_cause
    if cause:
        # The reference is an ES module, and the paths of those are cut at the colon of `file://`.
        foreign = ("file", "node")
        keep = lambda path: not own_frame(path) and path not in foreign
        for exception in cause["exceptions"]:
            exception["stack"] = [entry for entry in exception["stack"] if keep(entry["path"])]
        cause["paths"] = sorted(filter(keep, cause["paths"]))
    return cause


def normal_trailers(post):
    trailers = dict(post.trailers)
    body = trailers.pop("lambda-runtime-function-error-body", None)
    return trailers, normal(base64.b64decode(body)) if body else None


def assert_same_posts(ours, theirs):
    assert [post.path for post in ours.posts] == [post.path for post in theirs.posts]
    for mine, reference in zip(ours.posts, theirs.posts):
        assert normal(mine.body) == normal(reference.body)
        assert normal_cause(mine) == normal_cause(reference)
        assert normal_trailers(mine) == normal_trailers(reference)
        for name in ("content-type", "lambda-runtime-function-error-type", "lambda-runtime-function-response-mode", "trailer"):
            if reference.headers.get(name) is not None:
                assert mine.headers.get(name) == reference.headers.get(name), name


def log_lines(text):
    """Log text with the frames of the runtimes taken out of logged stack traces."""
    text = mask(text)
    text = re.sub(r'"(stack|stackTrace|trace)":\[((?:"(?:[^"\\]|\\.)*",?)*)\]', lambda m: '"%s":%s' % (m[1], [l for l in json.loads("[" + m[2] + "]") if not own_frame(l)]), text)  # fmt: skip
    return text


TENANT = {"Lambda_Runtime_Aws_Tenant_Id": "t-1"}
CLIENT = {"Lambda_Runtime_Client_Context": '{"custom":{"k":"v"}}', "Lambda_Runtime_Cognito_Identity": '{"cognitoIdentityId":"i"}'}
ANSWERS = """app.echo app.nothing app.sync app.text app.callback app.callbackNow app.callbackWaits app.succeed app.done
    app.never app.fields app.deep.er.handler esm.handler cjs.handler module/app.handler sub/dir/app.handler
    dep.handler""".split()
ERRORS = """app.callbackError app.callbackText app.callbackObject app.fail app.failNothing app.rejects app.rejectsText
    app.rejectsNull app.throws app.own app.cyclic app.bigint""".split()
ENDS = "app.unhandled app.uncaught app.exits".split()
INITS = """imports.handler syntax.handler raises.handler raises_text.handler absent.handler nodots ../app.handler app.missing
    app.notFunction leaves.handler""".split()
STREAMS = """app.stream app.streamEmpty app.streamHttp app.streamPipe app.streamFails app.streamFailsFirst app.streamSync
    app.streamReturns app.streamLate""".split()


@needs_official
@pytest.mark.parametrize("handler", ANSWERS)
def test_responses_are_the_references(task, handler):
    ours, theirs = both(task, handler, [invocation({"ü": [1, None]}, **CLIENT), invocation(request_id="second")])
    assert len(ours.posts) == 2 and ours.exit_code is None, (ours.stdout, ours.stderr)
    assert_same_posts(ours, theirs)
    assert log_lines(ours.stdout) == log_lines(theirs.stdout)


@needs_official
@pytest.mark.parametrize("handler", ERRORS)
def test_error_reports_are_the_references(task, handler):
    ours, theirs = both(task, handler, [invocation(), invocation()])
    assert [post.path for post in ours.posts] == ["invocation/%s/error" % REQUEST_ID] * 2
    assert_same_posts(ours, theirs)
    assert log_lines(ours.stdout) == log_lines(theirs.stdout)


@needs_official
@pytest.mark.parametrize("payload", [b"{not json", b""])
def test_events_that_are_not_json_are_the_references_errors(task, payload):
    ours, theirs = both(task, "app.echo", [invocation(payload)])
    assert_same_posts(ours, theirs)


@needs_official
@pytest.mark.parametrize("handler", ENDS)
def test_ends_are_the_references(task, handler):
    ours, theirs = both(task, handler, [invocation()])
    assert_same_posts(ours, theirs)
    assert ours.exit_code == theirs.exit_code is not None
    assert log_lines(ours.stdout) == log_lines(theirs.stdout)


@needs_official
@pytest.mark.parametrize("handler", INITS)
def test_failed_inits_are_the_references(task, handler):
    ours, theirs = both(task, handler, [invocation()])
    assert ours.nexts == theirs.nexts == 0
    assert ours.exit_code is not None and theirs.exit_code is not None
    if handler != "leaves.handler":
        assert_init_like(ours.post, theirs.post)


def assert_init_like(mine, reference):
    """A module that fails while it loads: the reference's own bundle is in its message and in its trace."""
    assert mine.path == reference.path == "init/error"
    assert mine.json["errorType"] == reference.json["errorType"]
    assert mine.headers["lambda-runtime-function-error-type"] == reference.headers["lambda-runtime-function-error-type"]
    assert mine.json["errorMessage"].split("\nRequire stack")[0] == reference.json["errorMessage"].split("\nRequire stack")[0]


@needs_official
@pytest.mark.parametrize("handler", STREAMS)
def test_streams_are_the_references(task, handler):
    ours, theirs = both(task, handler, [invocation()])
    assert_same_posts(ours, theirs)
    assert ours.exit_code == theirs.exit_code is None, ours.stdout
    assert log_lines(ours.stdout) == log_lines(theirs.stdout)


LOG_ENVIRONMENTS = [
    {},
    {"AWS_LAMBDA_LOG_LEVEL": "WARN"},
    {"AWS_LAMBDA_LOG_FORMAT": "JSON"},
    {"AWS_LAMBDA_LOG_FORMAT": "JSON", "AWS_LAMBDA_LOG_LEVEL": "ERROR"},
]


@needs_official
@pytest.mark.parametrize("env", LOG_ENVIRONMENTS)
@pytest.mark.parametrize("handler", ["app.logs", "app.own", "app.rejectsText"])
def test_log_records_are_the_references(task, handler, env):
    ours, theirs = both(task, handler, [invocation(**TENANT)], env)
    assert log_lines(ours.stdout) == log_lines(theirs.stdout)
    ours, theirs = both(task, handler, [invocation(**TENANT)], env, log_fd=True)
    assert [(f.kind, log_lines(f.message)) for f in ours.frames] == [(f.kind, log_lines(f.message)) for f in theirs.frames]
    assert ours.frames and ours.stdout == ""


def test_responses_without_the_reference(task):
    result = run(OURS, task, "app.echo", [invocation({"large": "x" * 1000000}), invocation(b'"\xc3\xbc"')], ENV)
    assert [post.path for post in result.posts] == ["invocation/%s/response" % REQUEST_ID] * 2
    assert len(result.posts[0].json["large"]) == 1000000
    assert result.posts[1].body == '"ü"'.encode()
    fields = run(OURS, task, "app.fields", [invocation(**CLIENT)], ENV).post.json
    assert fields["awsRequestId"] == REQUEST_ID and fields["invokedFunctionArn"] == ARN and fields["remaining"] is True
    assert fields["clientContext"] == {"custom": {"k": "v"}} and fields["memoryLimitInMB"] == "256"


def test_a_refused_response_does_not_end_the_environment(task):
    result = run(OURS, task, "app.echo", [invocation(status=413), invocation()], ENV)
    assert len(result.posts) == 2 and result.exit_code is None
    assert "Http response code: 413" in result.stderr


class TestWithoutCallbacks:
    """From nodejs24.x on handlers return or resolve; there are no callbacks."""

    ENV = {"AWS_EXECUTION_ENV": "AWS_Lambda_nodejs24.x"}

    def test_promises_and_returned_values(self, task):
        assert run(OURS, task, "app.echo", [invocation({"a": 1})], self.ENV).post.json == {"a": 1}
        assert run(OURS, task, "app.sync", [invocation()], self.ENV).post.json == "ignored"

    def test_callback_handlers_are_refused_at_init(self, task):
        post = run(OURS, task, "app.callback", [invocation()], self.ENV).post
        assert (post.path, post.json["errorType"]) == ("init/error", "Runtime.CallbackHandlerDeprecated")

    def test_the_context_has_no_completion_methods(self, task):
        keys = run(OURS, task, "app.fields", [invocation()], self.ENV).post.json["keys"]
        assert not {"succeed", "fail", "done", "callbackWaitsForEmptyEventLoop"} & set(keys)

    def test_a_promise_that_never_settles_is_an_error(self, task):
        post = run(OURS, task, "app.never", [invocation()], self.ENV).post
        assert (post.path, post.json["errorType"]) == ("invocation/%s/error" % REQUEST_ID, "Runtime.NodeJsExit")
