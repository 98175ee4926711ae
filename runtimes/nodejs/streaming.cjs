'use strict';
// Streamed responses: the stream that a handler wrapped in `awslambda.streamifyResponse` writes to.
//
// An HTTP/1.1 chunked body; a failure after the first byte is told in the trailers. node:stream is only loaded by
// functions that stream.

const { InvalidStreamingOperation, report } = require('./errors.cjs');

const HTTP_INTEGRATION = 'application/vnd.awslambda.http-integration-response';
const ERROR_TYPE = 'Lambda-Runtime-Function-Error-Type';
const ERROR_BODY = 'Lambda-Runtime-Function-Error-Body';

// The stream, a promise of the platform's answer, and a function that ends the response with an error.
function createResponseStream(api, id, highWaterMark) {
  const { Writable } = require('stream');
  let contentType = 'application/octet-stream';
  let exchange = null;
  let resolveResponded;
  let rejectResponded;
  const responded = new Promise((resolve, reject) => {
    resolveResponded = resolve;
    rejectResponded = reject;
  });
  responded.catch(() => {});

  const open = () => {
    if (exchange !== null) return exchange.socket;
    exchange = api.beginStream(
      id,
      'Lambda-Runtime-Function-Response-Mode: streaming\r\n' +
        `Trailer: ${ERROR_TYPE}\r\nTrailer: ${ERROR_BODY}\r\nContent-Type: ${contentType}\r\n`,
    );
    exchange.answer.then(resolveResponded, rejectResponded);
    return exchange.socket;
  };
  const writeChunk = (chunk, callback) => {
    if (chunk.length === 0) return callback();
    const socket = open();
    socket.cork();
    socket.write(`${chunk.length.toString(16)}\r\n`);
    socket.write(chunk);
    const more = socket.write('\r\n');
    socket.uncork();
    return more ? callback() : socket.once('drain', callback);
  };
  let trailers = '';
  const stream = new Writable({
    highWaterMark,
    write: (chunk, _encoding, callback) => writeChunk(chunk, callback),
    final: (callback) => {
      open().write(`0\r\n${trailers}\r\n`);
      callback();
    },
  });

  let begun = false;
  const write = stream.write;
  stream.write = function (chunk, encoding, callback) {
    if (typeof chunk !== 'string' && !Buffer.isBuffer(chunk) && chunk?.constructor !== Uint8Array) {
      chunk = JSON.stringify(chunk);
    }
    if (!begun) {
      begun = true;
      if (typeof this._onBeforeFirstWrite === 'function') this._onBeforeFirstWrite((first) => write.call(stream, first));
    }
    return write.call(stream, chunk, encoding, callback);
  };
  const end = stream.end;
  stream.end = function (chunk, encoding, callback) {
    if (chunk !== undefined && chunk !== null && typeof chunk !== 'function') this.write(chunk, encoding);
    return end.call(this, typeof chunk === 'function' ? chunk : typeof encoding === 'function' ? encoding : callback);
  };
  stream.setContentType = (type) => {
    if (begun) throw new InvalidStreamingOperation('Cannot set content-type, too late.');
    contentType = type;
  };

  const fail = (error, done) => {
    const body = report(error);
    const encoded = Buffer.from(JSON.stringify(body)).toString('base64');
    trailers = `${ERROR_TYPE}: ${String(body.errorType).replace(/[^\x20-\x7e]/g, '?')}\r\n${ERROR_BODY}: ${encoded}\r\n`;
    responded.then(done, done);
    if (stream.writableEnded) return;
    stream.on('error', () => {});
    if (stream.destroyed) open().write(`0\r\n${trailers}\r\n`);
    else stream.end();
  };
  return { stream, responded, fail };
}

// `awslambda.HttpResponseStream`: puts the status, headers and cookies of an HTTP response before the body.
class HttpResponseStream {
  static from(stream, prelude) {
    stream.setContentType(HTTP_INTEGRATION);
    stream._onBeforeFirstWrite = (write) => {
      write(JSON.stringify(prelude));
      write(new Uint8Array(8));
    };
    return stream;
  }
}

module.exports = { createResponseStream, HttpResponseStream };
