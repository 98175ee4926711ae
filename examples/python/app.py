"""Counts what one execution environment has done, and tells one environment from another."""

import os
import time

STARTED = time.time()
count = 0


def handler(event, context):
    global count
    count += 1
    return {
        "message": f"Hello, {event.get('name', 'world')}!",
        "environment": os.environ["AWS_LAMBDA_LOG_STREAM_NAME"],
        "invocations_here": count,
        "age_seconds": round(time.time() - STARTED, 3),
        "milliseconds_left": context.get_remaining_time_in_millis(),
    }
