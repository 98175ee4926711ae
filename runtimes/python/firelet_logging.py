"""The root logger's handler, in Lambda's text and JSON formats. Imported only when the function imports `logging`."""

import logging
import os
import time
import traceback

import firelet_runtime as runtime

_TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
# What a record has anyway; everything else in it came through `extra`.
_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) - {"taskName"} | {"aws_request_id", "tenant_id", "message", "asctime"}


def install(sink):
    """Gives the root logger one handler that writes to `sink`, and the configured level."""
    logging.Formatter.converter = time.gmtime
    level = os.environ.get("AWS_LAMBDA_LOG_LEVEL", "").upper()
    level = "DEBUG" if level == "TRACE" else level
    handler = LambdaLoggerHandler(sink, with_level=bool(runtime.JSON_FORMAT or level))
    if runtime.JSON_FORMAT:
        handler.setFormatter(JsonFormatter())
    else:
        line = "[%(levelname)s]\t%(asctime)s.%(msecs)03dZ\t%(aws_request_id)s\t%(message)s\n"
        handler.setFormatter(logging.Formatter(line, "%Y-%m-%dT%H:%M:%S"))
    handler.addFilter(_add_invocation)
    root = logging.getLogger()
    if level in logging._nameToLevel:
        root.setLevel(level)
    root.addHandler(handler)


def _add_invocation(record):
    record.aws_request_id = runtime.Invocation.request_id or ""
    record.tenant_id = runtime.Invocation.tenant_id
    return True


def _whole_level(record):
    return min(50, max(0, record.levelno)) // 10 * 10


def _frame_type(record):
    kind = runtime._FRAME_JSON if runtime.JSON_FORMAT else runtime._FRAME_TEXT
    return kind | runtime._FRAME_LEVEL.get(logging.getLevelName(_whole_level(record)), 0)


class LambdaLoggerHandler(logging.Handler):
    """Writes records to the runtime's log sink; code that looks for Lambda's handler knows it by `log_sink`."""

    def __init__(self, log_sink, with_level):
        logging.Handler.__init__(self)
        self.log_sink = log_sink
        self._with_level = with_level

    def emit(self, record):
        self.log_sink.log(self.format(record), _frame_type(record) if self._with_level else None)


class JsonFormatter(logging.Formatter):
    """One JSON object per record, with Lambda's field names."""

    def __init__(self):
        logging.Formatter.__init__(self, datefmt=_TIME_FORMAT)

    def format(self, record):
        import json

        record.levelno = _whole_level(record)
        record.levelname = logging.getLevelName(record.levelno)
        as_object = isinstance(record.msg, dict) and not record.args
        result = {
            "timestamp": self.formatTime(record, self.datefmt),
            "level": record.levelname,
            "message": record.msg if as_object else record.getMessage(),
            "logger": record.name,
        }
        if record.exc_info and record.exc_info[0] is not None:
            kind, value, trace = record.exc_info
            result["stackTrace"] = traceback.format_tb(trace)
            result["errorType"] = kind.__name__
            result["errorMessage"] = str(value)
        result["requestId"] = getattr(record, "aws_request_id", None)
        if result.get("errorType"):
            result["location"] = "%s:%s:%s" % (record.pathname, record.funcName, record.lineno)
        if getattr(record, "tenant_id", None) is not None:
            result["tenantId"] = record.tenant_id
        for name, value in vars(record).items():
            if name not in _OWN_FIELDS and name not in result:
                result[name] = value
        result = {name: value for name, value in result.items() if value is not None}
        return json.dumps(result, ensure_ascii=False, default=str) + "\n"
