// A client of the Runtime API 2018-06-01 over one connection that is kept open.
package firelet;

import java.io.BufferedInputStream;
import java.io.ByteArrayOutputStream;
import java.io.EOFException;
import java.io.IOException;
import java.io.InputStream;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.Locale;
import java.util.Map;

final class Api {
    /** An answer; the names of its headers are in lower case. */
    static final class Answer {
        final int status;
        final Map<String, String> headers;
        final byte[] body;

        Answer(int status, Map<String, String> headers, byte[] body) {
            this.status = status;
            this.headers = headers;
            this.body = body;
        }
    }

    private static final String PREFIX = "/2018-06-01/runtime/";
    // The platform keeps at most this much of an X-Ray cause; a longer one is left out.
    private static final int MAX_XRAY_CAUSE_BYTES = 64 * 1024;

    private final String host;
    private final int port;
    private final String common;
    private Socket socket;
    private InputStream input;

    Api(String address) {
        int colon = address.lastIndexOf(':');
        host = address.substring(0, colon);
        port = Integer.parseInt(address.substring(colon + 1));
        common = "Host: " + address + "\r\nUser-Agent: firelet-java/" + System.getProperty("java.version") + "\r\n";
    }

    /** Waits for an invocation. */
    Answer next() throws IOException {
        return get("invocation/next");
    }

    /** Says that the snapshot can be taken; returns when the process has been restored from it. */
    void restoreNext() throws IOException {
        get("restore/next");
    }

    private Answer get(String path) throws IOException {
        String head = "GET " + PREFIX + path + " HTTP/1.1\r\n" + common + "\r\n";
        Answer answer = exchange(head.getBytes(StandardCharsets.UTF_8), new byte[0]);
        if (answer.status != 200) {
            String body = new String(answer.body, StandardCharsets.UTF_8);
            throw new IOException("the Runtime API refused " + path + " with status " + answer.status + ": " + body);
        }
        return answer;
    }

    void respond(String id, byte[] body) throws IOException {
        post("invocation/" + id + "/response", body, "", "success");
    }

    void fail(String id, Map<String, Object> error, String type, String xrayCause) throws IOException {
        String headers = "Lambda-Runtime-Function-Error-Type: " + type + "\r\n";
        if (xrayCause != null && xrayCause.length() <= MAX_XRAY_CAUSE_BYTES) {
            headers += "Lambda-Runtime-Function-XRay-Error-Cause: " + xrayCause + "\r\n";
        }
        post("invocation/" + id + "/error", Json.write(error).getBytes(StandardCharsets.UTF_8), headers, "error");
    }

    void failInit(Map<String, Object> error, String type) throws IOException {
        String headers = "Lambda-Runtime-Function-Error-Type: " + type + "\r\n";
        post("init/error", Json.write(error).getBytes(StandardCharsets.UTF_8), headers, "error");
    }

    void failRestore(Map<String, Object> error, String type) throws IOException {
        String headers = "Lambda-Runtime-Function-Error-Type: " + type + "\r\n";
        post("restore/error", Json.write(error).getBytes(StandardCharsets.UTF_8), headers, "error");
    }

    private void post(String path, byte[] body, String headers, String what) throws IOException {
        String head = "POST " + PREFIX + path + " HTTP/1.1\r\n" + common + "Content-Type: application/json\r\n" + headers
                + "Content-Length: " + body.length + "\r\n\r\n";
        int status = exchange(head.getBytes(StandardCharsets.UTF_8), body).status;
        if (status < 300) return;
        System.err.println("LAMBDA_RUNTIME Failed to post handler " + what + " response. Http response code: " + status + ".");
        if (status >= 500) System.exit(1);
    }

    private Answer exchange(byte[] head, byte[] body) throws IOException {
        boolean reused = socket != null;
        try {
            return sendAndReceive(head, body);
        } catch (IOException e) {
            close();
            // An idle connection may have been closed, by the server or by a restore from a snapshot.
            if (!reused) throw e;
            return sendAndReceive(head, body);
        }
    }

    private Answer sendAndReceive(byte[] head, byte[] body) throws IOException {
        if (socket == null) {
            socket = new Socket(host, port);
            socket.setTcpNoDelay(true);
            input = new BufferedInputStream(socket.getInputStream(), 65536);
        }
        byte[] message = java.util.Arrays.copyOf(head, head.length + body.length);
        System.arraycopy(body, 0, message, head.length, body.length);
        socket.getOutputStream().write(message);

        int status = Integer.parseInt(line().split(" ", 3)[1]);
        Map<String, String> headers = new HashMap<>();
        for (String line = line(); !line.isEmpty(); line = line()) {
            int colon = line.indexOf(':');
            headers.put(line.substring(0, colon).toLowerCase(Locale.ROOT), line.substring(colon + 1).trim());
        }
        byte[] content;
        if ("chunked".equalsIgnoreCase(headers.get("transfer-encoding"))) content = chunks();
        else content = exactly(Integer.parseInt(headers.getOrDefault("content-length", "0")));
        if ("close".equalsIgnoreCase(headers.get("connection"))) close();
        return new Answer(status, headers, content);
    }

    private String line() throws IOException {
        ByteArrayOutputStream line = new ByteArrayOutputStream(128);
        for (int c = input.read(); c != '\n'; c = input.read()) {
            if (c < 0) throw new EOFException("the Runtime API closed the connection");
            if (c != '\r') line.write(c);
        }
        return line.toString(StandardCharsets.UTF_8);
    }

    private byte[] exactly(int length) throws IOException {
        byte[] body = input.readNBytes(length);
        if (body.length < length) throw new EOFException("the Runtime API closed the connection inside a message");
        return body;
    }

    private byte[] chunks() throws IOException {
        ByteArrayOutputStream body = new ByteArrayOutputStream();
        while (true) {
            int size = Integer.parseInt(line().split(";")[0].trim(), 16);
            body.write(exactly(size));
            line();
            if (size == 0) return body.toByteArray();
        }
    }

    void close() throws IOException {
        if (socket != null) socket.close();
        socket = null;
    }
}
