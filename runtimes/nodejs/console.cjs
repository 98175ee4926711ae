'use strict';
// `console` in Lambda's formats: tab-separated text or JSON, with the request id, filtered by level, as frames where the
// platform gives a log descriptor.

const fs = require('fs');
const { format } = require('util');

const { report } = require('./errors.cjs');

const REQUEST_ID = Symbol.for('aws.lambda.runtime.requestId');
const TENANT_ID = Symbol.for('aws.lambda.runtime.tenantId');
const FRAME_TEXT = 0xa55a0003;
const FRAME_JSON = 0xa55a0002;
const LEVELS = {
  TRACE: { name: 'TRACE', priority: 1, mask: 0x04 },
  DEBUG: { name: 'DEBUG', priority: 2, mask: 0x08 },
  INFO: { name: 'INFO', priority: 3, mask: 0x0c },
  WARN: { name: 'WARN', priority: 4, mask: 0x10 },
  ERROR: { name: 'ERROR', priority: 5, mask: 0x14 },
  FATAL: { name: 'FATAL', priority: 6, mask: 0x18 },
};

// Set by `patchConsole`.
let asJson = false;
// What tells the ids of the invocation that speaks, where there are several at once.
let speaker = null;

function setInvocation(requestId, tenantId) {
  globalThis[REQUEST_ID] = requestId;
  globalThis[TENANT_ID] = tenantId;
}

// Has lines carry the ids that `store` knows of the invocation in whose course they are written.
function setSpeaker(store) {
  speaker = store;
}

const requestId = () => (speaker ? speaker.getRequestId() : globalThis[REQUEST_ID]);
const tenantIdNow = () => (speaker ? speaker.getTenantId() : globalThis[TENANT_ID]);

const errorName = (error) => error.constructor?.name ?? 'UnknownError';

function expandError(_key, value) {
  if (!(value instanceof Error)) return value;
  const stackTrace = typeof value.stack === 'string' ? value.stack.split('\n') : value.stack;
  return { errorType: errorName(value), errorMessage: value.message, stackTrace, ...value };
}

function textLine(time, level, args) {
  return `${time}\t${requestId()}\t${level.name}\t${format(...args)}`;
}

function jsonLine(timestamp, level, args) {
  const record = { timestamp, level: level.name, requestId: requestId() };
  const tenantId = tenantIdNow();
  if (tenantId !== undefined && tenantId !== null) record.tenantId = tenantId;
  if (args.length === 1) {
    record.message = args[0];
    try {
      return JSON.stringify(record, expandError);
    } catch {
      record.message = format(record.message);
      return JSON.stringify(record);
    }
  }
  record.message = format(...args);
  const error = args.find((arg) => arg instanceof Error);
  if (error !== undefined) {
    record.errorType = errorName(error);
    record.errorMessage = error.message;
    record.stackTrace = typeof error.stack === 'string' ? error.stack.split('\n') : [];
  }
  return JSON.stringify(record);
}

function line(time, level, args) {
  return asJson ? jsonLine(time, level, args) : textLine(time, level, args);
}

function toStdout(level, args) {
  process.stdout.write(line(new Date().toISOString(), level, args).replace(/\n/g, '\r') + '\n');
}

function toDescriptor(fd) {
  return (level, args) => {
    const now = new Date();
    const text = line(now.toISOString(), level, args) + (asJson ? '' : '\n');
    const size = Buffer.byteLength(text);
    const frame = Buffer.allocUnsafe(16 + size);
    frame.writeUInt32BE(((asJson ? FRAME_JSON : FRAME_TEXT) | level.mask) >>> 0, 0);
    frame.writeUInt32BE(size, 4);
    frame.writeBigUInt64BE(BigInt(now.valueOf()) * 1000n, 8);
    frame.write(text, 16);
    for (let at = 0; at < frame.length; ) at += fs.writeSync(fd, frame, at);
  };
}

function patchConsole() {
  asJson = process.env.AWS_LAMBDA_LOG_FORMAT?.toUpperCase() === 'JSON';
  const fd = process.env._LAMBDA_TELEMETRY_LOG_FD;
  delete process.env._LAMBDA_TELEMETRY_LOG_FD;
  const log = fd === undefined ? toStdout : toDescriptor(parseInt(fd, 10));
  const lowest = LEVELS[process.env.AWS_LAMBDA_LOG_LEVEL?.toUpperCase()] ?? LEVELS.TRACE;
  const at = (level) => (level.priority >= lowest.priority ? (...args) => log(level, args.length ? args : [undefined]) : () => {});
  console.trace = at(LEVELS.TRACE);
  console.debug = at(LEVELS.DEBUG);
  console.info = at(LEVELS.INFO);
  console.log = console.info;
  console.warn = at(LEVELS.WARN);
  console.error = at(LEVELS.ERROR);
  console.fatal = (...args) => log(LEVELS.FATAL, args.length ? args : [undefined]);
}

function withFields(_key, value) {
  if (!(value instanceof Error)) return value;
  const fields = { errorType: value.name, errorMessage: value.message, code: value.code, ...value };
  if (typeof value.stack === 'string') fields.stack = value.stack.split('\n');
  return fields;
}

// Logs a failure of the function under a heading such as `Invoke Error`.
function logError(heading, thrown) {
  const error = thrown instanceof Error ? thrown : new Error(thrown);
  if (asJson) {
    console.error(error);
    return;
  }
  let text;
  try {
    text = JSON.stringify(error, withFields);
  } catch {
    text = JSON.stringify(report(error));
  }
  console.error(heading, '\t' + text);
}

module.exports = { logError, patchConsole, setInvocation, setSpeaker };
