"""What a caller gets when a function fails, in Lambda's own words."""

import pytest


def failed(answer):
    """The payload of an invocation that must have failed."""
    assert answer.status == 200
    assert answer.error == "Unhandled", answer.raw
    return answer.payload


def exit_error(answer, text):
    return {"errorType": "Runtime.ExitError", "errorMessage": f"RequestId: {answer.request_id} Error: {text}"}


def test_an_exception_carries_its_type_message_and_trace(firelet):
    function = firelet.deploy("def handler(event, context):\n    raise ValueError('boom')\n")
    answer = function.call()
    payload = failed(answer)
    assert payload["errorType"] == "ValueError"
    assert payload["errorMessage"] == "boom"
    assert payload["requestId"] == answer.request_id
    assert payload["stackTrace"] == ['  File "/var/task/app.py", line 2, in handler\n    raise ValueError(\'boom\')\n']


def test_a_missing_module_is_an_import_error(firelet):
    payload = failed(firelet.deploy("import nope\n").call())
    assert payload["errorType"] == "Runtime.ImportModuleError"
    assert payload["errorMessage"] == "Unable to import module 'app': No module named 'nope'"


def test_a_missing_handler_is_named(firelet):
    payload = failed(firelet.deploy("x = 1\n", handler="app.nope").call())
    assert payload["errorType"] == "Runtime.HandlerNotFound"
    assert payload["errorMessage"] == "Handler 'nope' missing on module 'app'"


def test_a_syntax_error_is_told_apart(firelet):
    payload = failed(firelet.deploy("def handler(:\n").call())
    assert payload["errorType"] == "Runtime.UserCodeSyntaxError"
    assert payload["errorMessage"].startswith("Syntax error in module 'app': ")


def test_an_exception_while_loading_is_the_answer(firelet):
    payload = failed(firelet.deploy("raise RuntimeError('no start')\n").call())
    assert (payload["errorType"], payload["errorMessage"]) == ("RuntimeError", "no start")


def test_an_answer_that_is_not_json_cannot_be_marshalled(firelet):
    payload = failed(firelet.deploy("def handler(event, context):\n    return {1, 2}\n").call())
    assert payload["errorType"] == "Runtime.MarshalError"
    assert payload["errorMessage"] == "Unable to marshal response: Object of type set is not JSON serializable"


def test_a_process_that_exits_is_an_exit_error(firelet):
    answer = firelet.deploy("import os\ndef handler(event, context): os._exit(3)\n").call()
    assert failed(answer) == exit_error(answer, "Runtime exited with error: exit status 3")


def test_a_process_that_exits_with_zero_gave_no_reason(firelet):
    answer = firelet.deploy("import os\ndef handler(event, context): os._exit(0)\n").call()
    assert failed(answer) == exit_error(answer, "Runtime exited without providing a reason")


def test_a_process_killed_by_a_signal_is_named(firelet):
    code = "import os, signal\ndef handler(event, context): os.kill(os.getpid(), signal.SIGSEGV)\n"
    answer = firelet.deploy(code).call()
    payload = failed(answer)
    assert payload["errorType"] == "Runtime.ExitError"
    assert payload["errorMessage"].startswith(
        f"RequestId: {answer.request_id} Error: Runtime exited with error: signal: segmentation fault"
    )


def test_a_crash_while_loading_is_an_exit_error(firelet):
    answer = firelet.deploy("import os\nos._exit(4)\n").call()
    assert failed(answer) == exit_error(answer, "Runtime exited with error: exit status 4")


def test_a_function_over_its_memory_is_killed(firelet, root):
    code = "def handler(event, context):\n    hog = []\n    while True: hog.append(b'x' * 1_000_000)\n"
    function = firelet.deploy(code, MemorySize=128)
    answer = function.call()
    assert failed(answer) == exit_error(answer, "Runtime exited with error: signal: killed")
    assert "\tMemory Size: 128 MB\tMax Memory Used: 128 MB\t" in answer.log
    assert "Status: error\tError Type: Runtime." in answer.log


def test_a_function_over_its_time_is_stopped(firelet):
    code = "import time\ndef handler(event, context): time.sleep(event.get('seconds', 0))\n"
    function = firelet.deploy(code, Timeout=1)
    function()
    answer = function.call({"seconds": 20})
    assert failed(answer) == {
        "errorType": "Sandbox.Timedout",
        "errorMessage": f"RequestId: {answer.request_id} Error: Task timed out after 1.00 seconds",
    }
    assert "Status: timeout" in answer.log
    assert function.call().error is None


def test_a_response_over_six_mebibytes_and_100_bytes_is_refused(firelet):
    function = firelet.deploy("def handler(event, context): return 'x' * event['length']\n", MemorySize=512)
    limit = 6 * 1024 * 1024 + 100
    assert len(function({"length": limit - 2})) == limit - 2
    assert failed(function.call({"length": limit - 1})) == {
        "errorMessage": "Response payload size exceeded maximum allowed payload size (6291556 bytes).",
        "errorType": "Function.ResponseSizeTooLarge",
    }
    assert function({"length": 1}) == "x"


def test_nothing_returned_is_null(firelet):
    answer = firelet.deploy("def handler(event, context): pass\n").call()
    assert (answer.error, answer.raw) == (None, b"null")


def test_a_missing_bootstrap_is_told(firelet):
    answer = firelet.deploy({"readme.txt": "no bootstrap"}, runtime="provided.al2023", handler="any").call()
    payload = failed(answer)
    assert payload["errorType"] == "Runtime.InvalidEntrypoint"
    assert payload["errorMessage"] == (
        f"RequestId: {answer.request_id} Error: Couldn't find valid bootstrap(s): [/var/task/bootstrap /opt/bootstrap]"
    )


def test_a_bootstrap_that_cannot_be_run_is_told(firelet):
    files = {"bootstrap": "#!/no/such/interpreter\n"}
    payload = failed(firelet.deploy(files, runtime="provided.al2023", handler="any").call())
    assert payload["errorType"] == "Runtime.InvalidEntrypoint"


def test_a_module_that_only_its_owner_may_read_is_refused_by_the_interpreter(firelet):
    answer = firelet.deploy({"app.py": (0o600, "def handler(event, context): return 1\n")}).call()
    payload = failed(answer)
    assert payload["errorType"] == "PermissionError"
    assert payload["errorMessage"] == "[Errno 13] Permission denied: '/var/task/app.py'"
    # As on AWS: the platform does not know the function's own exceptions.
    assert "\tStatus: error\tError Type: Runtime.Unknown" in answer.log
    answer = firelet.deploy({"app.py": "import helper\n", "helper.py": (0o600, "x = 1\n")}).call()
    assert failed(answer)["errorMessage"] == "[Errno 13] Permission denied: '/var/task/helper.py'"


def test_a_bootstrap_that_only_its_owner_may_run_is_told(firelet):
    for mode in (0o700, 0o600, 0o644):
        files = {"bootstrap": (mode, "#!/bin/sh\nsleep 9\n")}
        answer = firelet.deploy(files, runtime="provided.al2023", handler="any").call()
        assert failed(answer) == {
            "errorType": "Runtime.InvalidEntrypoint",
            "errorMessage": f"RequestId: {answer.request_id} Error: fork/exec /var/task/bootstrap: permission denied",
        }


def test_a_payload_that_is_not_json_is_refused(firelet):
    function = firelet.deploy("def handler(event, context): return event\n")
    with pytest.raises(firelet.lambda_.exceptions.InvalidRequestContentException) as refused:
        function.call(b"{nope")
    message = refused.value.response["message"]
    assert message.startswith("Could not parse request body into json: Could not parse payload into json: ")


def test_a_payload_over_six_mebibytes_is_refused(firelet):
    function = firelet.deploy("def handler(event, context): return len(event)\n", MemorySize=512)
    assert function(b'"' + b"x" * (6_291_456 - 2) + b'"') == 6_291_454
    with pytest.raises(firelet.lambda_.exceptions.RequestTooLargeException) as refused:
        function.call(b'"' + b"x" * (6_291_457 - 2) + b'"')
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 413
    assert refused.value.response["message"] == (
        "6291457 byte payload is too large for the RequestResponse invocation type (limit 6291456 bytes)"
    )


def test_an_unknown_function_is_named_with_its_arn(firelet):
    with pytest.raises(firelet.lambda_.exceptions.ResourceNotFoundException) as refused:
        firelet.lambda_.invoke(FunctionName="absent")
    arn = "arn:aws:lambda:us-east-1:000000000000:function:absent:$LATEST"
    assert refused.value.response["Message"] == f"Function not found: {arn}"
