// A failure that the runtime names itself: of the handler's name, class or signature, or of its event.
package firelet;

final class Fault extends RuntimeException {
    final String type;
    final String trace;
    /** Whether it is reported as a failed init, after which the process ends, rather than at each invocation. */
    final boolean fatal;

    Fault(String message, String type, String trace, boolean fatal) {
        super(message, null, false, false);
        this.type = type;
        this.trace = trace;
        this.fatal = fatal;
    }

    Fault(String message) {
        this(message, null, null, false);
    }

    static Fault of(Throwable cause, boolean fatal) {
        return new Fault(Logs.message(cause), cause.getClass().getName(), Logs.trace(cause), fatal);
    }
}
