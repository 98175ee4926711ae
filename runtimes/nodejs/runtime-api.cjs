'use strict';
// A client of the Runtime API 2018-06-01 over one connection that is kept open.
//
// The connection holds the event loop only while an answer is awaited (`ref`), never while a handler runs (`unref`).

const net = require('net');

const { report, xrayCause } = require('./errors.cjs');

const PREFIX = '/2018-06-01/runtime/';
// The platform keeps at most this much of an X-Ray cause; a longer one is left out.
const MAX_XRAY_CAUSE_BYTES = 64 * 1024;
const CRLF2 = Buffer.from('\r\n\r\n');

// One connection and the one exchange that is under way on it.
class Connection {
  constructor(host, port) {
    this.socket = net.connect({ host, port, noDelay: true });
    this.socket.setNoDelay(true);
    this.used = false;
    this.closed = false;
    this.reset();
    this.socket.on('data', (data) => this.receive(data));
    this.socket.on('error', (error) => this.end(error));
    this.socket.on('close', () => this.end(new Error('the Runtime API closed the connection')));
  }

  reset() {
    this.parts = [];
    this.size = 0;
    this.head = null;
    this.pending = null;
  }

  get busy() {
    return this.pending !== null;
  }

  // Resolves with the answer to what is written now and until it is complete.
  answer() {
    this.socket.ref();
    return new Promise((resolve, reject) => {
      this.pending = { resolve, reject };
    });
  }

  end(error) {
    this.closed = true;
    const pending = this.pending;
    this.reset();
    this.socket.destroy();
    pending?.reject(error);
  }

  receive(data) {
    this.parts.push(data);
    this.size += data.length;
    if (this.head === null) {
      const all = this.parts.length === 1 ? data : Buffer.concat(this.parts);
      const end = all.indexOf(CRLF2);
      if (end < 0) {
        this.parts = [all];
        return;
      }
      const lines = all.toString('utf8', 0, end).split('\r\n');
      const headers = {};
      for (let index = 1; index < lines.length; index++) {
        const colon = lines[index].indexOf(':');
        headers[lines[index].slice(0, colon).toLowerCase()] = lines[index].slice(colon + 1).trim();
      }
      const status = Number(lines[0].split(' ', 2)[1]);
      const chunked = headers['transfer-encoding']?.toLowerCase() === 'chunked';
      this.head = { status, headers, chunked, length: Number(headers['content-length'] || 0) };
      const rest = all.subarray(end + 4);
      this.parts = [rest];
      this.size = rest.length;
    }
    if (this.head.chunked) {
      const body = dechunked(Buffer.concat(this.parts));
      if (body !== null) this.complete(body);
    } else if (this.size >= this.head.length) {
      const all = this.parts.length === 1 ? this.parts[0] : Buffer.concat(this.parts);
      this.complete(all.subarray(0, this.head.length));
    }
  }

  complete(body) {
    const { status, headers } = this.head;
    const pending = this.pending;
    this.reset();
    this.used = true;
    this.socket.unref();
    if (headers.connection?.toLowerCase() === 'close') {
      this.closed = true;
      this.socket.destroy();
    }
    pending?.resolve({ status, headers, body });
  }
}

// The body in a complete chunked message, or null if more is to come.
function dechunked(data) {
  const parts = [];
  for (let at = 0; ; ) {
    const eol = data.indexOf('\r\n', at);
    if (eol < 0) return null;
    const size = parseInt(data.toString('latin1', at, eol), 16);
    const end = eol + 2 + size;
    if (data.length < end + 2) return null;
    if (size === 0) return Buffer.concat(parts);
    parts.push(data.subarray(eol + 2, end));
    at = end + 2;
  }
}

class RuntimeApi {
  constructor(address) {
    const colon = address.lastIndexOf(':');
    this.host = (colon < 0 ? address : address.slice(0, colon)).replace(/^\[|\]$/g, '');
    this.port = colon < 0 ? 80 : Number(address.slice(colon + 1));
    this.common = `Host: ${address}\r\nUser-Agent: firelet-nodejs/${process.versions.node}\r\n`;
    this.nextRequest = Buffer.from(`GET ${PREFIX}invocation/next HTTP/1.1\r\n${this.common}\r\n`);
    this.connection = null;
  }

  // A connection on which nothing is under way.
  idle() {
    if (this.connection !== null && !this.connection.closed && !this.connection.busy) return this.connection;
    const connection = new Connection(this.host, this.port);
    // Only a report that overtakes a pending exchange takes a second connection; the first one stays ours.
    if (this.connection === null || this.connection.closed) this.connection = connection;
    return connection;
  }

  async exchange(request) {
    const connection = this.idle();
    const reused = connection.used;
    try {
      const answer = connection.answer();
      connection.socket.write(request);
      return await answer;
    } catch (error) {
      // An idle connection may have been closed, by the server or by a restore from a snapshot.
      if (!reused) throw error;
      const again = this.idle();
      const answer = again.answer();
      again.socket.write(request);
      return answer;
    }
  }

  // Waits for an invocation: its headers, in lower case, and its payload.
  async next() {
    const answer = await this.exchange(this.nextRequest);
    if (answer.status !== 200) {
      throw new Error(`the Runtime API refused next with status ${answer.status}: ${answer.body}`);
    }
    return answer;
  }

  path(id, what) {
    return `${PREFIX}invocation/${encodeURIComponent(id)}/${what}`;
  }

  respond(id, text, done) {
    this.post(this.path(id, 'response'), text, 'Content-Type: application/json\r\n', 'success', done);
  }

  fail(id, error, done) {
    const body = report(error);
    let headers = errorHeaders(body);
    const cause = xrayCause(error);
    if (cause !== '' && Buffer.byteLength(cause) <= MAX_XRAY_CAUSE_BYTES) {
      headers += `Lambda-Runtime-Function-XRay-Error-Cause: ${cause}\r\n`;
    }
    this.post(this.path(id, 'error'), JSON.stringify(body), headers, 'error', done);
  }

  failInit(error, done, type) {
    const body = report(error);
    this.post(`${PREFIX}init/error`, JSON.stringify(body), errorHeaders(body, type), 'error', done);
  }

  // Says that the snapshot can be taken; resolves when the process has been restored from it.
  async restoreNext() {
    const { status, body } = await this.exchange(`GET ${PREFIX}restore/next HTTP/1.1\r\n${this.common}\r\n`);
    if (status !== 200) throw new Error(`the Runtime API refused restore/next with status ${status}: ${body}`);
  }

  failRestore(error, done, type) {
    const body = report(error);
    this.post(`${PREFIX}restore/error`, JSON.stringify(body), errorHeaders(body, type), 'error', done);
  }

  post(path, text, headers, what, done) {
    const size = Buffer.byteLength(text);
    const head = `POST ${path} HTTP/1.1\r\n${this.common}${headers}Content-Length: ${size}\r\n\r\n`;
    this.exchange(head + text).then(
      ({ status }) => {
        if (status >= 300) {
          process.stderr.write(`LAMBDA_RUNTIME Failed to post handler ${what} response. Http response code: ${status}.\n`);
          if (status >= 500) process.exit(1);
        }
        done();
      },
      (error) => {
        process.stderr.write(`LAMBDA_RUNTIME Failed to post handler ${what} response: ${error.message}.\n`);
        process.exit(1);
      },
    );
  }

  // Begins a response that is sent in chunks; the caller writes to the socket and awaits the answer.
  beginStream(id, headers) {
    const connection = this.idle();
    const answer = connection.answer();
    const path = this.path(id, 'response');
    connection.socket.write(`POST ${path} HTTP/1.1\r\n${this.common}${headers}Transfer-Encoding: chunked\r\n\r\n`);
    return { socket: connection.socket, answer };
  }
}

function errorHeaders(body, type = body.errorType) {
  const clean = String(type).replace(/[^\x20-\x7e]/g, '?');
  return `Content-Type: application/json\r\nLambda-Runtime-Function-Error-Type: ${clean}\r\n`;
}

module.exports = { RuntimeApi };
