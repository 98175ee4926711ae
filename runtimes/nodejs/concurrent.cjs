'use strict';
// Several invocations at once: each has a loop that asks for the next one, and an asynchronous context of its own, by which
// log lines, uncaught errors and libraries know it (`awslambda.InvokeStore`, as on Lambda).
//
// The event loop never runs empty here, so callbacks do not wait for that.

const { AsyncLocalStorage } = require('async_hooks');

const { RuntimeApi } = require('./runtime-api.cjs');
const { createResponseStream } = require('./streaming.cjs');
const { logError, setSpeaker } = require('./console.cjs');

const PROTECTED_KEYS = {
  REQUEST_ID: Symbol.for('_AWS_LAMBDA_REQUEST_ID'),
  X_RAY_TRACE_ID: Symbol.for('_AWS_LAMBDA_X_RAY_TRACE_ID'),
  TENANT_ID: Symbol.for('_AWS_LAMBDA_TENANT_ID'),
};

// What belongs to the invocation in whose course it is asked.
class InvokeStore {
  static PROTECTED_KEYS = PROTECTED_KEYS;

  contexts = new AsyncLocalStorage();

  getContext() {
    return this.contexts.getStore();
  }

  hasContext() {
    return this.getContext() !== undefined;
  }

  get(key) {
    return this.getContext()?.[key];
  }

  set(key, value) {
    if (Object.values(PROTECTED_KEYS).includes(key)) {
      throw new Error(`Cannot modify protected Lambda context field: ${String(key)}`);
    }
    const context = this.getContext();
    if (context === undefined) throw new Error('No context available');
    context[key] = value;
  }

  run(context, work) {
    return this.contexts.run(context, work);
  }

  getRequestId() {
    return this.get(PROTECTED_KEYS.REQUEST_ID) ?? '-';
  }

  getXRayTraceId() {
    return this.get(PROTECTED_KEYS.X_RAY_TRACE_ID);
  }

  getTenantId() {
    return this.get(PROTECTED_KEYS.TENANT_ID);
  }
}

// How many invocations the platform gives at once.
const concurrency = () => Number(process.env.AWS_LAMBDA_MAX_CONCURRENCY || 1);

// To be called before the function is loaded, which may look for the store.
function prepare() {
  const store = new InvokeStore();
  setSpeaker(store);
  return store;
}

// Serves until the process ends. `runtime` knows how to call the handler: `isStreaming`, `highWaterMark`,
// `fill(context, headers)`, `invoke(event, context, settle)`, `stream(event, stream, context)`, `serialized(result)`.
function serve(store, address, runtime, onError) {
  const reports = new RuntimeApi(address);
  const ends = (code) => (error) => {
    const id = store.get(PROTECTED_KEYS.REQUEST_ID);
    if (id === undefined) process.exit(code);
    else reports.fail(id, error, () => process.exit(code));
  };
  onError.uncaughtException = ends(129);
  onError.unhandledRejection = ends(128);
  for (let index = 0; index < concurrency(); index++) {
    loop(store, new RuntimeApi(address), runtime).catch((error) => {
      console.log(`Unexpected Top Level Error: ${error.toString()}`);
      process.exit(129);
    });
  }
}

async function loop(store, api, runtime) {
  for (;;) {
    const { headers, body } = await api.next();
    const context = {
      [PROTECTED_KEYS.REQUEST_ID]: headers['lambda-runtime-aws-request-id'],
      [PROTECTED_KEYS.X_RAY_TRACE_ID]: headers['lambda-runtime-trace-id'],
      [PROTECTED_KEYS.TENANT_ID]: headers['lambda-runtime-aws-tenant-id'],
    };
    const id = context[PROTECTED_KEYS.REQUEST_ID];
    await store.run(context, () => (runtime.isStreaming ? streamed : answered)(api, runtime, id, headers, body));
  }
}

async function answered(api, runtime, id, headers, body) {
  let text;
  try {
    const event = JSON.parse(body.toString('utf8'));
    const context = {};
    runtime.fill(context, headers);
    text = runtime.serialized(await new Promise((resolve, reject) => runtime.invoke(event, context, { resolve, reject })));
  } catch (error) {
    logError('Invoke Error', error);
    return new Promise((done) => api.fail(id, error, done));
  }
  return new Promise((done) => api.respond(id, text, done));
}

async function streamed(api, runtime, id, headers, body) {
  const { stream, responded, fail } = createResponseStream(api, id, runtime.highWaterMark);
  try {
    const context = {};
    runtime.fill(context, headers);
    const result = runtime.stream(JSON.parse(body.toString('utf8')), stream, context);
    if (typeof result?.then !== 'function') throw 'Streaming does not support non-async handlers.';
    if ((await result) !== undefined) console.warn('Streaming handlers ignore return values.');
    await responded;
  } catch (error) {
    logError('Invoke Error', error);
    await new Promise((done) => fail(error, done));
  }
}

module.exports = { concurrency, prepare, serve };
