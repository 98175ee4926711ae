"""One invocation that is nobody's, before the runtime waits for its function.

A fork shares its memory with the interpreter that it came from until it writes there, and each page that it writes first is copied
while somebody waits. So what every start does is done once ahead, with nothing of a function's: a module is compiled, one is imported,
and an event is fetched from a socket of our own, handled and answered.
"""

import sys

import _socket

_SOURCE = "import sys\n\n\ndef handler(event, context):\n    return [event]\n"
_EVENT = b'{"name": "value", "list": [1, 2.5, null, true]}'
_NEXT = b"""HTTP/1.1 200 OK\r
lambda-runtime-aws-request-id: 00000000-0000-0000-0000-000000000000\r
lambda-runtime-deadline-ms: 1\r
lambda-runtime-invoked-function-arn: arn:aws:lambda:us-east-1:000000000000:function:rehearsal\r
lambda-runtime-trace-id: Root=1-00000000-000000000000000000000000;Parent=0000000000000000;Sampled=0\r
content-type: application/json\r
content-length: %d\r
\r
%b""" % (len(_EVENT), _EVENT)
_ACCEPTED = b"HTTP/1.1 202 Accepted\r\ncontent-type: application/json\r\ncontent-length: 16\r\n\r\n{\"status\":\"OK\"}\n"


def handler(event, context):
    context.get_remaining_time_in_millis()
    return event


class _Silence:
    """A sink for logs, of which there are none."""

    framed = False

    def flush(self):
        pass


def rehearse(api, load_handler, serve_one):
    """Has `load_handler` load a function from this very module and `serve_one` serve it, by an `api` that is not connected."""
    exec(compile(_SOURCE, "rehearsal", "exec"), {})
    # A packet is read at once and not with the next one, as two answers of the platform are.
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        theirs.send(_NEXT)
        theirs.send(_ACCEPTED)
        api.use(ours)
        del sys.modules[__name__]
        serve_one(api, load_handler(__name__ + ".handler"), _Silence(), None)
    finally:
        theirs.close()
        ours.close()
        sys.modules.pop(__name__, None)
