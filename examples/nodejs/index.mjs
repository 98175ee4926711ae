// Counts what one execution environment has done; an ES module with top-level await.
import { readFile } from 'node:fs/promises';

const hostname = (await readFile('/proc/sys/kernel/hostname', 'utf8')).trim();
let count = 0;

export const handler = async (event, context) => ({
    message: `Hello, ${event.name ?? 'world'}!`,
    environment: process.env.AWS_LAMBDA_LOG_STREAM_NAME,
    hostname,
    invocations_here: ++count,
    milliseconds_left: context.getRemainingTimeInMillis(),
});
