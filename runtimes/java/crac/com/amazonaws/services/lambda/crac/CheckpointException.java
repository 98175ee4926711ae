package com.amazonaws.services.lambda.crac;

/** Resources have failed before a snapshot; what they threw is suppressed in this. */
public class CheckpointException extends Exception {
    private static final long serialVersionUID = 1L;

    public CheckpointException() {}
}
