'use strict';
// The errors that the runtime names itself, and the form in which any error is reported to the platform.

class UnhandledPromiseRejection extends Error {
  constructor(reason, promise) {
    super(reason);
    this.reason = reason;
    this.promise = promise;
  }
}

const named = {
  ImportModuleError: class extends Error {},
  HandlerNotFound: class extends Error {},
  MalformedHandlerName: class extends Error {},
  UserCodeSyntaxError: class extends Error {},
  MalformedStreamingHandler: class extends Error {},
  InvalidStreamingOperation: class extends Error {},
  CallbackHandlerDeprecated: class extends Error {},
  NodeJsExit: class extends Error {},
  UnhandledPromiseRejection,
};
for (const [name, type] of Object.entries(named)) type.prototype.name = `Runtime.${name}`;

const looksLikeError = (value) =>
  value && typeof value.name === 'string' && typeof value.message === 'string' && typeof value.stack === 'string' &&
  value.name !== '' && value.message !== '' && value.stack !== '';

// DEL is the one character that JSON leaves alone and headers refuse.
const clean = (text) => text?.replace(/\x7F/g, '%7F');

// `{errorType, errorMessage, trace}`, for the body of an error report.
function report(error) {
  try {
    if (error instanceof Error || require('util').types.isNativeError(error) || looksLikeError(error)) {
      return {
        errorType: clean(error.name),
        errorMessage: clean(error.message),
        trace: clean(error.stack).split('\n'),
      };
    }
    return { errorType: typeof error, errorMessage: error.toString(), trace: [] };
  } catch {
    return {
      errorType: 'handled',
      errorMessage:
        'callback called with Error argument, but there was a problem while retrieving one or more of its message, name, and stack',
    };
  }
}

// The JSON for Lambda-Runtime-Function-XRay-Error-Cause; empty if the error cannot be described.
function xrayCause(error) {
  try {
    const stack = [];
    for (const raw of error.stack ? clean(error.stack).split('\n').slice(1) : []) {
      const line = raw.trim().replace(/[()]/g, '');
      const place = line.slice(line.indexOf(' ') + 1);
      const space = place.lastIndexOf(' ');
      const label = space >= 0 ? place.slice(0, space) : '';
      const [file, number] = (label === '' ? place : place.slice(space + 1)).split(':');
      stack.push({ path: file, line: parseInt(number, 10), label: label || 'anonymous' });
    }
    return JSON.stringify({
      working_directory: process.cwd(),
      exceptions: [{ type: clean(error.name), message: clean(error.message), stack }],
      paths: [...new Set(stack.map((entry) => entry.path))],
    });
  } catch {
    return '';
  }
}

module.exports = { ...named, report, xrayCause };
