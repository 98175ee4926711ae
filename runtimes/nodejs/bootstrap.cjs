'use strict';
// The Node.js runtime: loads the handler and serves invocations from the Runtime API 2018-06-01.
//
// What a function can observe follows Lambda's own client (aws-lambda-ric); the tests run both side by side. The Runtime
// API is spoken over one raw connection: it must not keep the event loop alive while a handler runs, because "the loop
// is empty" is how callback-style handlers end, and it starts sooner than node:http. Node.js 16 or newer.

// Before anything is loaded that is not in Node's own snapshot.
const takeFlagsBack = withoutFlags();

const fs = require('fs');
const path = require('path');

const { RuntimeApi } = require('./runtime-api.cjs');
const { createResponseStream, HttpResponseStream } = require('./streaming.cjs');
const { logError, patchConsole, setInvocation } = require('./console.cjs');
const errors = require('./errors.cjs');
const snapshot = require('./snapshot.cjs');

const STREAMING = Symbol.for('aws.lambda.runtime.handler.streaming');
const HIGH_WATER_MARK = Symbol.for('aws.lambda.runtime.handler.streaming.highWaterMark');
const BEFORE_EXIT = Symbol.for('aws.lambda.beforeExit');

// From Node.js 24 on Lambda has no callbacks: the name that the function was created with decides, not the interpreter.
let withoutCallbacks = false;

// Node.js carries its built-in modules compiled, and V8 takes what was compiled only under the very flags of that build. Ours
// have had their effect when the process started, so they step aside while modules are loaded that are not the function's:
// compiling those anew takes half as long as the interpreter's start. Answers what puts the flags back, since threads and
// contexts that a function makes look at them.
function withoutFlags() {
  const defaults = { 'expose-gc': '--no-expose-gc', 'max-old-space-size': '--max-old-space-size=0', 'max-semi-space-size': '--max-semi-space-size=0' };
  const ours = process.execArgv.filter((flag) => defaults[flag.slice(2).split('=')[0]]);
  const quiet = Object.getOwnPropertyDescriptor(process, 'noDeprecation');
  try {
    // require('v8') would load much of what is to be loaded afterwards.
    process.noDeprecation = true;
    const v8 = process.binding('v8');
    for (const flag of ours) v8.setFlagsFromString(defaults[flag.slice(2).split('=')[0]]);
    return () => ours.forEach((flag) => v8.setFlagsFromString(flag));
  } catch {
    // A Node.js without this binding takes longer.
    return () => {};
  } finally {
    if (quiet) Object.defineProperty(process, 'noDeprecation', quiet);
    else delete process.noDeprecation;
  }
}

function takeEnvironment() {
  const version = /nodejs(\d+)\.x$/.exec(process.env.AWS_EXECUTION_ENV || '');
  withoutCallbacks = version !== null && Number(version[1]) >= 24;
}

const whenLoopIsEmpty = (listener) => {
  globalThis[BEFORE_EXIT] = listener;
};
const nothing = () => {};

// --------------------------------------------------------------------------------------------------------------------
// Loading the handler

function packageIsModule(folder) {
  for (let dir = folder; !dir.endsWith('/node_modules'); dir = path.dirname(dir)) {
    const file = path.join(dir, 'package.json');
    if (fs.existsSync(file)) {
      try {
        return JSON.parse(fs.readFileSync(file, 'utf8')).type === 'module';
      } catch (error) {
        console.warn(`${file} cannot be read, it will be ignored for ES module detection purposes.`, error);
        return false;
      }
    }
    if (dir === '/') break;
  }
  return false;
}

const isFile = (file) => fs.existsSync(file);

async function loadModule(root, folder, name) {
  const file = path.resolve(root, folder, name);
  if (isFile(file)) return require(file);
  if (isFile(file + '.js')) {
    return packageIsModule(path.dirname(file)) ? import(file + '.js') : require(file + '.js');
  }
  if (isFile(file + '.mjs')) return import(file + '.mjs');
  if (isFile(file + '.cjs')) return require(file + '.cjs');
  return require(require.resolve(name, { paths: [root, folder] }));
}

async function loadHandler(root, handler, store) {
  if (handler.includes('..')) {
    throw new errors.MalformedHandlerName(
      `'${handler}' is not a valid handler name. Use absolute paths when specifying root directories in handler names.`,
    );
  }
  const base = path.basename(handler);
  const folder = handler.slice(0, handler.indexOf(base));
  const parts = /^([^.]*)\.(.*)$/.exec(base);
  if (parts === null) throw new errors.MalformedHandlerName('Bad handler');

  const off = process.env.AWS_LAMBDA_NODEJS_NO_GLOBAL_AWSLAMBDA;
  if (off !== '1' && off !== 'true') {
    globalThis.awslambda = {
      streamifyResponse(target, options) {
        target[STREAMING] = 'response';
        if (typeof options?.highWaterMark === 'number') target[HIGH_WATER_MARK] = parseInt(options.highWaterMark, 10);
        return target;
      },
      HttpResponseStream,
      ...snapshot.registration,
      ...(store && { InvokeStore: store }),
    };
  }
  let loaded;
  try {
    loaded = await loadModule(root, folder, parts[1]);
  } catch (error) {
    if (error instanceof SyntaxError) throw new errors.UserCodeSyntaxError(error);
    if (error?.code === 'MODULE_NOT_FOUND') throw new errors.ImportModuleError(error);
    throw error;
  }
  const found = parts[2].split('.').reduce((value, key) => value && value[key], loaded);
  if (!found) throw new errors.HandlerNotFound(`${handler} is undefined or not exported`);
  if (typeof found !== 'function') throw new errors.HandlerNotFound(`${handler} is not a function`);
  if (found[STREAMING] && found[STREAMING] !== 'response') {
    throw new errors.MalformedStreamingHandler('Only response streaming is supported.');
  }
  if (withoutCallbacks && !found[STREAMING] && found.length >= 3) {
    throw new errors.CallbackHandlerDeprecated(
      'AWS Lambda has removed support for callback-based function handlers starting with Node.js 24. ' +
        'You need to modify this function to use a supported handler signature to use Node.js 24 or later.',
    );
  }
  return found;
}

// --------------------------------------------------------------------------------------------------------------------
// The context

function parsed(text, name) {
  if (text === undefined) return undefined;
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`Cannot parse ${name} as json: ${error.toString()}`);
  }
}

function takeTrace(headers) {
  const trace = headers['lambda-runtime-trace-id'];
  if (trace) process.env._X_AMZN_TRACE_ID = trace;
  else delete process.env._X_AMZN_TRACE_ID;
}

function fillContext(context, headers) {
  const deadline = headers['lambda-runtime-deadline-ms'];
  const env = process.env;
  return Object.assign(context, {
    functionVersion: env.AWS_LAMBDA_FUNCTION_VERSION,
    functionName: env.AWS_LAMBDA_FUNCTION_NAME,
    memoryLimitInMB: env.AWS_LAMBDA_FUNCTION_MEMORY_SIZE,
    logGroupName: env.AWS_LAMBDA_LOG_GROUP_NAME,
    logStreamName: env.AWS_LAMBDA_LOG_STREAM_NAME,
    clientContext: parsed(headers['lambda-runtime-client-context'], 'ClientContext'),
    identity: parsed(headers['lambda-runtime-cognito-identity'], 'CognitoIdentity'),
    invokedFunctionArn: headers['lambda-runtime-invoked-function-arn'],
    awsRequestId: headers['lambda-runtime-aws-request-id'],
    tenantId: headers['lambda-runtime-aws-tenant-id'],
    getRemainingTimeInMillis: () => deadline - Date.now(),
  });
}

// The property that both kinds of context have; `read` tells the runtime what the handler set.
function waitOption(context) {
  let wait = true;
  Object.defineProperty(context, 'callbackWaitsForEmptyEventLoop', {
    configurable: true,
    enumerable: true,
    get: () => wait,
    set: (value) => {
      wait = value;
    },
  });
  return { read: () => wait };
}

// --------------------------------------------------------------------------------------------------------------------
// Invocations

class Runtime {
  constructor(api, handler, onError) {
    this.api = api;
    this.handler = handler;
    this.onError = onError;
    this.handleOnce = handler[STREAMING] ? this.handleOnceStreaming : this.handleOnceNonStreaming;
  }

  // Serves the next invocation at the beginning of the next turn of the event loop.
  scheduleIteration() {
    setImmediate(() => {
      this.handleOnce().catch((error) => {
        console.log(`Unexpected Top Level Error: ${error.toString()}`);
        this.onError.uncaughtException(error);
      });
    });
  }

  async next() {
    const { headers, body } = await this.api.next();
    const id = headers['lambda-runtime-aws-request-id'];
    setInvocation(id, headers['lambda-runtime-aws-tenant-id']);
    this.onError.uncaughtException = (error) => this.api.fail(id, error, () => process.exit(129));
    this.onError.unhandledRejection = (error) => this.api.fail(id, error, () => process.exit(128));
    return { id, headers, body };
  }

  async handleOnceNonStreaming() {
    const { id, headers, body } = await this.next();
    const { context, callback, abandon } = this.completions(id);
    const { succeed, fail } = context;
    if (withoutCallbacks) {
      for (const name of ['succeed', 'fail', 'done', 'callbackWaitsForEmptyEventLoop']) delete context[name];
    }
    try {
      whenLoopIsEmpty(() => {
        abandon();
        if (withoutCallbacks) {
          const unsettled = new errors.NodeJsExit(
            'The Lambda runtime client detected an unexpected Node.js exit code. ' +
              'This is most commonly caused by a Promise that was never settled.',
          );
          logError('Invoke Error', unsettled);
          this.api.fail(id, unsettled, () => this.scheduleIteration());
        } else {
          this.api.respond(id, 'null', () => this.scheduleIteration());
        }
      });
      const event = JSON.parse(body.toString('utf8'));
      takeTrace(headers);
      fillContext(context, headers);
      const result = withoutCallbacks ? this.handler(event, context) : this.handler(event, context, callback);
      if (result && typeof result.then === 'function') result.then(succeed, fail).catch(fail);
      else if (withoutCallbacks) succeed(result);
    } catch (error) {
      callback(error);
    }
  }

  // The ways in which a handler can complete invocation `id`; the first that is used counts.
  completions(id) {
    const context = {};
    const wait = waitOption(context);
    const next = () => this.scheduleIteration();
    let responded = false;
    const respond = (result) => {
      if (responded) {
        console.error('Invocation has already been reported as done. Cannot call complete more than once per invocation.');
        return;
      }
      responded = true;
      this.api.respond(id, serialized(result), next);
    };
    const failed = (error) => {
      logError('Invoke Error', error);
      this.api.fail(id, error, next);
    };
    const isError = (error) => error !== undefined && error !== null;
    const done = (error, result) => {
      whenLoopIsEmpty(nothing);
      if (isError(error)) failed(error);
      else respond(result);
    };
    const callback = (error, result) => {
      whenLoopIsEmpty(nothing);
      if (isError(error)) failed(error);
      else if (!wait.read()) respond(result);
      else whenLoopIsEmpty(() => setImmediate(() => respond(result)));
    };

    let finished = false;
    const first = (complete) => (...args) => {
      if (finished) return;
      complete(...args);
      finished = true;
    };
    context.succeed = first((result) => done(null, result));
    context.fail = first((error) => done(isError(error) ? error : 'handled'));
    context.done = first(done);
    const abandon = () => {
      responded = true;
    };
    return { context, callback: first(callback), abandon };
  }

  async handleOnceStreaming() {
    const { id, headers, body } = await this.next();
    const context = {};
    const wait = waitOption(context);
    const { stream, responded, fail } = createResponseStream(this.api, id, this.handler[HIGH_WATER_MARK]);
    const next = () => {
      if (wait.read()) whenLoopIsEmpty(() => setImmediate(() => this.scheduleIteration()));
      else {
        whenLoopIsEmpty(nothing);
        this.scheduleIteration();
      }
    };
    const failed = (error) => {
      logError('Invoke Error', error);
      fail(error, next);
    };
    try {
      whenLoopIsEmpty(() => this.scheduleIteration());
      takeTrace(headers);
      fillContext(context, headers);
      const result = this.handler(JSON.parse(body.toString('utf8')), stream, context);
      if (!result || typeof result.then !== 'function') {
        failed('Streaming does not support non-async handlers.');
        return;
      }
      if ((await result) !== undefined) console.warn('Streaming handlers ignore return values.');
      await responded;
      next();
    } catch (error) {
      failed(error);
    }
  }
}

function serialized(result) {
  let text;
  try {
    text = JSON.stringify(result === undefined ? null : result);
  } catch {
    throw new Error('Unable to stringify response body');
  }
  return text === undefined ? 'null' : text;
}

// The handler as it is called where several invocations run at once: whichever way of completing is used first counts.
function concurrently(handler) {
  return {
    isStreaming: Boolean(handler[STREAMING]),
    highWaterMark: handler[HIGH_WATER_MARK],
    fill: fillContext,
    serialized,
    stream: handler,
    invoke(event, context, { resolve, reject }) {
      const callback = (error, result) => (error === undefined || error === null ? resolve(result) : reject(error));
      if (!withoutCallbacks) {
        waitOption(context);
        Object.assign(context, { succeed: resolve, fail: (error) => reject(error ?? 'handled'), done: callback });
      }
      const result = withoutCallbacks ? handler(event, context) : handler(event, context, callback);
      if (typeof result?.then === 'function') result.then(resolve, reject);
      else if (withoutCallbacks) resolve(result);
      else if (handler.length < 2) resolve(null);
    },
  };
}

// --------------------------------------------------------------------------------------------------------------------
// The process

async function main() {
  if (process.env.FIRELET_PRESTART_FD !== undefined) {
    const { wait, warm } = require('./prestart.cjs');
    await warm(loadModule);
    takeFlagsBack();
    wait(Number(process.env.FIRELET_PRESTART_FD));
  } else {
    takeFlagsBack();
  }
  takeEnvironment();
  patchConsole();
  const api = new RuntimeApi(process.env.AWS_LAMBDA_RUNTIME_API);
  const onError = {
    uncaughtException: (error) => api.failInit(error, () => process.exit(129)),
    unhandledRejection: (error) => api.failInit(error, () => process.exit(128)),
  };
  process.on('uncaughtException', (error) => {
    logError('Uncaught Exception', error);
    onError.uncaughtException(error);
  });
  process.on('unhandledRejection', (reason, promise) => {
    const error = new errors.UnhandledPromiseRejection(reason, promise);
    logError('Unhandled Promise Rejection', error);
    onError.unhandledRejection(error);
  });
  const concurrent = Number(process.env.AWS_LAMBDA_MAX_CONCURRENCY || 1) > 1 ? require('./concurrent.cjs') : null;
  const store = concurrent?.prepare();
  whenLoopIsEmpty(nothing);
  process.on('beforeExit', () => globalThis[BEFORE_EXIT]());

  const root = process.env.LAMBDA_TASK_ROOT || process.cwd();
  let handler;
  try {
    handler = await loadHandler(root, process.env._HANDLER || process.argv[2] || '', store);
  } catch (error) {
    logError('Uncaught Exception', error);
    onError.uncaughtException(error);
    return;
  }
  if (snapshot.wanted()) {
    const failed = (what, error, report, code) => {
      logError(what, error);
      report(() => process.exit(code));
    };
    if (!(await snapshot.completeInit(api, failed))) return;
  }
  if (concurrent) concurrent.serve(store, process.env.AWS_LAMBDA_RUNTIME_API, concurrently(handler), onError);
  else new Runtime(api, handler, onError).scheduleIteration();
}

main();
