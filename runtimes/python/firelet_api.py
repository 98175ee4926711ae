"""A client of the Runtime API 2018-06-01 over one raw connection that is kept open."""

import sys

import _socket

from firelet_json import dumps

# The platform keeps at most this much of an X-Ray cause; a longer one is left out.
_MAX_XRAY_CAUSE_BYTES = 64 * 1024


class ApiError(Exception):
    """The Runtime API cannot be reached or does not speak HTTP/1.1."""


class RuntimeApi:
    """A client of the Runtime API over one connection that is kept open."""

    _PREFIX = "/2018-06-01/runtime/"

    def __init__(self, address):
        host, _, port = address.rpartition(":")
        self._target = (host, int(port)) if host else (address, 80)
        self._socket = None
        agent = "firelet-python/%d.%d.%d" % sys.version_info[:3]
        self._common = "Host: %s\r\nUser-Agent: %s\r\n" % (address, agent)
        self._next = ("GET %sinvocation/next HTTP/1.1\r\n%s\r\n" % (self._PREFIX, self._common)).encode("ascii")

    def use(self, connection):
        """Goes on over a socket that is connected."""
        self._socket = connection

    def next(self):
        """Waits for an invocation: its headers, in lower case, and its payload."""
        status, headers, body = self._exchange(self._next)
        if status != 200:
            raise ApiError("the Runtime API refused next with status %d: %s" % (status, body.decode("utf-8", "replace")))
        return headers, body

    def respond(self, request_id, body, content_type):
        return self._post("invocation/%s/response" % request_id, body, "Content-Type: %s\r\n" % content_type)

    def fail(self, request_id, error, xray_cause):
        headers = "Content-Type: application/json\r\n"
        headers += "Lambda-Runtime-Function-Error-Type: %s\r\n" % _header_value(error["errorType"])
        if 0 < len(xray_cause) <= _MAX_XRAY_CAUSE_BYTES:
            headers += "Lambda-Runtime-Function-XRay-Error-Cause: %s\r\n" % xray_cause
        return self._post("invocation/%s/error" % request_id, dumps(error).encode("utf-8", "replace"), headers)

    def fail_init(self, error, kind=None):
        return self._report("init/error", error, kind or error["errorType"])

    def fail_restore(self, error, kind):
        return self._report("restore/error", error, kind)

    def restore_next(self):
        """Says that the snapshot can be taken; returns when the process has been restored from it."""
        request = "GET %srestore/next HTTP/1.1\r\n%s\r\n" % (self._PREFIX, self._common)
        status, _, body = self._exchange(request.encode("ascii"))
        if status != 200:
            text = "the Runtime API refused restore/next with status %d: %s"
            raise ApiError(text % (status, body.decode("utf-8", "replace")))

    def restore_announced(self):
        """Says the same, and does not wait: `restore_next` is to be called by the process that has been restored."""
        request = "GET %srestore/next HTTP/1.1\r\n%s\r\n" % (self._PREFIX, self._common)
        if self._socket is None:
            self._connect()
        self._socket.sendall(request.encode("ascii"))

    def disconnect(self):
        """Closes the connection; the next request opens another."""
        self._close()

    def _report(self, path, error, kind):
        headers = "Content-Type: application/json\r\n"
        headers += "Lambda-Runtime-Function-Error-Type: %s\r\n" % _header_value(kind)
        return self._post(path, dumps(error).encode("utf-8", "replace"), headers)

    def _post(self, path, body, headers):
        head = "POST %s%s HTTP/1.1\r\n%s%sContent-Length: %d\r\n\r\n"
        head = (head % (self._PREFIX, path, self._common, headers, len(body))).encode("utf-8", "replace")
        return self._exchange(head, body)[0]

    def _exchange(self, head, body=b""):
        reused = self._socket is not None
        try:
            return self._send_and_receive(head, body)
        except OSError:
            self._close()
            # An idle connection may have been closed, by the server or by a restore from a snapshot.
            if not reused:
                raise
            return self._send_and_receive(head, body)

    def _send_and_receive(self, head, body):
        if self._socket is None:
            self._connect()
        if len(body) < 65536:
            self._socket.sendall(head + body)
        else:
            self._socket.sendall(head)
            self._socket.sendall(body)
        return self._receive()

    def _connect(self):
        host, port = self._target
        try:
            _socket.inet_aton(host)
            family, address = _socket.AF_INET, (host, port)
        except OSError:
            # Bytes, because a text name would import the IDNA codec, and `re` with it.
            found = _socket.getaddrinfo(host.strip("[]").encode("ascii"), port, 0, _socket.SOCK_STREAM)
            family, address = found[0][0], found[0][4]
        connection = _socket.socket(family, _socket.SOCK_STREAM)
        connection.connect(address)
        connection.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        self._socket = connection

    def _close(self):
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _receive(self):
        receive = self._socket.recv
        data = b""
        while True:
            part = receive(65536)
            if not part:
                raise ConnectionResetError("the Runtime API closed the connection")
            data = data + part if data else part
            end = data.find(b"\r\n\r\n")
            if end >= 0:
                break
        lines = data[:end].decode("utf-8", "replace").split("\r\n")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        status = int(lines[0].split(" ", 2)[1])
        rest = data[end + 4 :]
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = self._receive_chunks(rest)
        else:
            length = int(headers.get("content-length", 0))
            body = rest if len(rest) >= length else self._receive_exactly(rest, length)
        if headers.get("connection", "").lower() == "close":
            self._close()
        return status, headers, body

    def _receive_exactly(self, start, length):
        body = bytearray(length)
        body[: len(start)] = start
        view = memoryview(body)
        filled = len(start)
        while filled < length:
            count = self._socket.recv_into(view[filled:])
            if not count:
                raise ApiError("the Runtime API closed the connection inside a message")
            filled += count
        view.release()
        return bytes(body)

    def _receive_chunks(self, data):
        def more():
            part = self._socket.recv(65536)
            if not part:
                raise ApiError("the Runtime API closed the connection inside a message")
            return part

        body = []
        while True:
            while b"\r\n" not in data:
                data += more()
            size, _, data = data.partition(b"\r\n")
            size = int(size.split(b";")[0], 16)
            while len(data) < size + 2:
                data += more()
            if size == 0:
                return b"".join(body)
            body.append(data[:size])
            data = data[size + 2 :]


def _header_value(text):
    return "".join(c if c.isprintable() else "?" for c in text)
