'use strict';
// The end of an initialization that is kept as a snapshot: the function's hooks, and what every clone must draw anew.
//
// Lambda has no SnapStart for Node.js, so the names are ours: `awslambda.beforeSnapshot` and `awslambda.afterRestore`,
// beside `awslambda.streamifyResponse`. Hooks may be async. They do nothing unless the function is published with
// SnapStart. The process stands in `restore/next` while the snapshot is taken; each clone returns from there on its own.

const fs = require('fs');
const path = require('path');

const RESEED = path.join(__dirname, 'reseed.node');

const before = [];
const after = [];

function register(list) {
  return (hook, ...args) => {
    if (typeof hook !== 'function') throw new TypeError('a snapshot hook must be a function');
    list.push(() => hook(...args));
    return hook;
  };
}

// What the function registers its hooks with.
const registration = { beforeSnapshot: register(before), afterRestore: register(after) };

// Whether the init goes on in clones of a snapshot.
const wanted = () => process.env.AWS_LAMBDA_INITIALIZATION_TYPE === 'snap-start';

// Runs the hooks before the snapshot, waits for the restore, runs those after it; whether all went well. `failed` gets what
// failed, the error, a function that reports it, and the code to end with.
async function completeInit(api, failed) {
  try {
    if (!fs.existsSync(RESEED)) throw new Error('SnapStart for Node.js needs a part of the runtime that Firelet was built without, for want of a C compiler');
    // Also those that a hook registers.
    while (before.length > 0) await before.pop()();
    global.gc?.();
    await api.restoreNext();
  } catch (error) {
    failed('Before Snapshot Error', error, (done) => api.failInit(error, done, 'Runtime.BeforeSnapshotError'), 64);
    return false;
  }
  try {
    drawAnew();
    for (const hook of after) await hook();
  } catch (error) {
    failed('After Restore Error', error, (done) => api.failRestore(error, done, 'Runtime.AfterRestoreError'), 65);
    return false;
  }
  return true;
}

// What would go on alike in all clones: OpenSSL's generators, what `crypto` keeps of them for later, and V8's generator,
// which cannot be seeded again and is replaced.
function drawAnew() {
  // Loading it is all that it takes.
  require(RESEED);
  const crypto = require('crypto');
  // Node.js draws the numbers of 128 UUIDs and of 1024 integers at once. Twice as many leave none of the old.
  for (let n = 0; n < 256; n++) crypto.randomUUID?.();
  for (let n = 0; n < 2048; n++) crypto.randomInt(256);
  const random = generator(crypto.randomFillSync(new Uint32Array(4)));
  Object.defineProperty(Math, 'random', { value: random, writable: true, enumerable: false, configurable: true });
}

// Numbers in [0, 1) of 53 bits, by xoshiro128++ (Blackman and Vigna).
function generator(s) {
  const rotated = (x, k) => (x << k) | (x >>> (32 - k));
  const next = () => {
    const result = (rotated((s[0] + s[3]) | 0, 7) + s[0]) >>> 0;
    const t = s[1] << 9;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotated(s[3], 11);
    return result;
  };
  return { random: () => ((next() >>> 5) * 67108864 + (next() >>> 6)) / 9007199254740992 }.random;
}

module.exports = { completeInit, registration, wanted };
