package com.amazonaws.services.lambda.crac;

/** Resources have failed after a restore; what they threw is suppressed in this. */
public class RestoreException extends Exception {
    private static final long serialVersionUID = 1L;

    public RestoreException() {}
}
