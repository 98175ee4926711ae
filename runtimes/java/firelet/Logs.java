// The log sink, and exceptions as text: stack traces end where the runtime's own frames begin.
package firelet;

import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.io.PrintStream;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.time.Instant;
import java.time.temporal.ChronoUnit;
import java.util.Arrays;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;

final class Logs {
    private static final int FRAME_TEXT = 0xA55A0003;
    private static final int FRAME_JSON = 0xA55A0002;
    private static final List<String> LEVELS = Arrays.asList("UNDEFINED", "TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL");

    static final boolean JSON = "JSON".equalsIgnoreCase(System.getenv("AWS_LAMBDA_LOG_FORMAT"));
    private static final int LOWEST = Math.max(0, LEVELS.indexOf(String.valueOf(System.getenv("AWS_LAMBDA_LOG_LEVEL")).toUpperCase()));

    private final OutputStream frames;

    Logs() throws ReflectiveOperationException {
        System.setOut(printer(FileDescriptor.out));
        System.setErr(printer(FileDescriptor.err));
        String descriptor = System.getenv("_LAMBDA_TELEMETRY_LOG_FD");
        if (descriptor == null) {
            frames = null;
        } else {
            frames = new FileOutputStream(Descriptors.of(Integer.parseInt(descriptor)));
        }
    }

    private static PrintStream printer(FileDescriptor descriptor) {
        return new PrintStream(new FileOutputStream(descriptor), true, StandardCharsets.UTF_8);
    }

    /** Logs a record of a level (`UNDEFINED` if the function named none) and of the invocation with these headers. */
    void log(String message, String level, Map<String, String> headers) {
        int rank = LEVELS.indexOf(level);
        if (rank > 0 && rank < LOWEST) return;
        int mask = rank > 0 ? rank * 4 : 0;
        if (!JSON) {
            String head = rank > 0 ? "[" + level + "] " : "";
            write((head + message).getBytes(StandardCharsets.UTF_8), FRAME_TEXT | mask);
            return;
        }
        Map<String, Object> record = new LinkedHashMap<>();
        record.put("timestamp", Instant.now().truncatedTo(ChronoUnit.MILLIS).toString());
        record.put("message", message);
        record.put("level", level);
        String requestId = headers.get("lambda-runtime-aws-request-id");
        String tenantId = headers.get("lambda-runtime-aws-tenant-id");
        if (requestId != null) record.put("AWSRequestId", requestId);
        if (tenantId != null) record.put("tenantId", tenantId);
        write((Json.write(record) + "\n").getBytes(StandardCharsets.UTF_8), FRAME_JSON | mask);
    }

    /** Logs bytes as they are; in one piece, whoever else does. */
    synchronized void write(byte[] message, int type) {
        try {
            if (frames == null) {
                System.out.write(message, 0, message.length);
                System.out.flush();
                return;
            }
            long millis = System.currentTimeMillis();
            ByteBuffer frame = ByteBuffer.allocate(16 + message.length);
            frame.putInt(type).putInt(message.length).putLong(millis * 1000).put(message);
            frames.write(frame.array());
        } catch (IOException e) {
            System.err.println("cannot write to the log descriptor: " + e.getMessage());
        }
    }

    void write(byte[] message) {
        write(message, FRAME_TEXT);
    }

    /** Logs a failure of the function, in the invocation with these headers. */
    void error(Fault fault, Map<String, String> headers) {
        String text = fault.getMessage() + "\n";
        if (fault.type != null || fault.trace != null) {
            text = fault.getMessage() + ": " + (fault.type == null ? "" : fault.type) + "\n" + (fault.trace == null ? "" : fault.trace) + "\n";
        }
        log(text, JSON ? "ERROR" : "UNDEFINED", headers);
    }

    static String message(Throwable thrown) {
        String message = thrown.getLocalizedMessage();
        return message == null ? thrown.getClass().getName() : message;
    }

    static String trace(Throwable thrown) {
        trim(thrown, new HashSet<>());
        StringWriter text = new StringWriter();
        thrown.printStackTrace(new PrintWriter(text));
        return text.toString();
    }

    /** Cuts the runtime's frames off a throwable, its causes and what they suppressed. */
    static void trim(Throwable thrown, Set<Throwable> seen) {
        if (thrown == null || !seen.add(thrown)) return;
        StackTraceElement[] frames = thrown.getStackTrace();
        for (int i = 0; i < frames.length; i++) {
            if (frames[i].getClassName().startsWith("firelet.")) {
                int end = i;
                while (end > 0 && reflective(frames[end - 1].getClassName())) end--;
                thrown.setStackTrace(Arrays.copyOf(frames, end));
                break;
            }
        }
        trim(thrown.getCause(), seen);
        for (Throwable suppressed : thrown.getSuppressed()) trim(suppressed, seen);
    }

    // The way from the runtime to the handler.
    private static boolean reflective(String name) {
        return name.startsWith("java.lang.reflect.") || name.startsWith("jdk.internal.reflect.") || name.startsWith("java.lang.invoke.");
    }
}
