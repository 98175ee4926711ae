'use strict';
// A runtime that is started before it is known whose it will be: it makes itself ready and waits here for its environment.
//
// A function finds what it would find in a process that was started for it alone. It can tell by the age of the process
// (process.uptime, performance.timeOrigin), by which built-in modules are loaded (process.moduleLoadList) and by what the
// kernel says of the start (/proc/self/environ).

const fs = require('fs');
const net = require('net');
const path = require('path');

const { RuntimeApi } = require('./runtime-api.cjs');

// The platform gives this descriptor at the start; whose environment it is comes later.
const KEPT = '_LAMBDA_TELEMETRY_LOG_FD';
// What functions and the SDKs that they carry load most, of what changes nothing else when it is loaded.
const COMMON = [
  'assert', 'async_hooks', 'buffer', 'child_process', 'crypto', 'dns', 'events', 'fs/promises', 'http', 'http2', 'https',
  'module', 'net', 'os', 'path', 'perf_hooks', 'process', 'querystring', 'stream', 'stream/promises', 'string_decoder',
  'timers', 'timers/promises', 'tls', 'url', 'util', 'worker_threads', 'zlib',
];

// Runs once through what every start runs through, so that it is compiled.
async function warm(loadModule) {
  for (const name of COMMON) require(name);
  for (const name of ['warm-module', 'warm']) await loadModule(__dirname, '', name);
  const server = net.createServer();
  // Without a network there is no exchange to make ready for.
  const listens = await new Promise((resolve) => {
    server.once('error', () => resolve(false)).listen(0, '127.0.0.1', () => resolve(true));
  });
  if (listens) await exchange(server);
}

// An exchange with a Runtime API, one of its own.
async function exchange(server) {
  const closed = [];
  const closing = (what) => closed.push(new Promise((resolve) => what.once('close', resolve)));
  server.once('connection', (socket) => {
    closing(socket);
    socket.on('error', () => {});
    socket.once('data', () => socket.write('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}'));
  });
  const api = new RuntimeApi(`127.0.0.1:${server.address().port}`);
  await api.next();
  const { socket } = api.connection;
  closing(socket);
  closing(server);
  // With a reset no port is left behind in TIME_WAIT.
  if (socket.resetAndDestroy) socket.resetAndDestroy();
  else socket.destroy();
  server.close();
  await Promise.all(closed);
}

// Says that everything is ready, waits for the environment and takes it over.
function wait(fd) {
  fs.writeSync(fd, '\n');
  const parts = [];
  for (;;) {
    const part = Buffer.allocUnsafeSlow(65536);
    const size = fs.readSync(fd, part);
    if (size === 0) break;
    parts.push(part.subarray(0, size));
  }
  fs.closeSync(fd);
  // Nobody wanted this one.
  if (parts.length === 0) process.exit(0);
  const { env, cwd } = JSON.parse(Buffer.concat(parts).toString('utf8'));
  for (const name of Object.keys(process.env)) {
    if (name !== KEPT) delete process.env[name];
  }
  for (const [name, value] of env) process.env[name] = value;
  // As the shell does that starts the interpreter.
  process.env.PWD = cwd;
  process.chdir(cwd);
  forget(__filename);
  forget(path.join(__dirname, 'warm.js'));
}

// Takes a module out of all that a function can look into.
function forget(file) {
  delete require.cache[file];
  for (const { children } of Object.values(require.cache)) {
    const at = children.findIndex((child) => child.filename === file);
    if (at >= 0) children.splice(at, 1);
  }
  const paths = require('module')._pathCache;
  for (const [key, found] of Object.entries(paths)) {
    if (found === file) delete paths[key];
  }
}

module.exports = { wait, warm };
