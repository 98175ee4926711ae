// A JVM that is started before it is known whose it will be: it makes itself ready and waits here for its environment.
//
// Nothing may read the environment before, System.getenv included: the JDK remembers it. Nor may anything ask for the time
// zone, which the JDK remembers too.
package firelet;

import java.io.ByteArrayOutputStream;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.URLClassLoader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Map;

final class Prestart {
    private static final byte[] VARIABLE = "FIRELET_PRESTART_FD=".getBytes(StandardCharsets.UTF_8);
    // The platform gives this descriptor at the start; whose environment it is comes later.
    private static final String KEPT = "_LAMBDA_TELEMETRY_LOG_FD";
    // What every start needs and nothing has loaded so far.
    private static final String[] CLASSES = {"Binder", "Context", "Fault", "Handler", "Logs"};

    private Prestart() {}

    private static native boolean take(byte[] block, byte[] directory, byte[] kept);

    /** Waits for the environment if the process was started so; returns when it is in place. */
    static void waitIfAsked(Path runtime) throws Exception {
        int number = descriptor();
        if (number < 0) return;
        System.load(runtime.resolve("libenvironment.so").toString());
        for (String name : CLASSES) Class.forName("firelet." + name, false, Prestart.class.getClassLoader());
        try (URLClassLoader below = Functions.below(List.of(Functions.directory(runtime.resolve("java-api").toString())))) {
            below.loadClass("com.amazonaws.services.lambda.runtime.Context");
            Handler.find("firelet.Warm::handle", below);
        }
        exchange();
        var socket = Descriptors.of(number);
        new FileOutputStream(socket).write('\n');
        byte[] given;
        try (InputStream input = new FileInputStream(socket)) {
            given = rest(input);
        }
        // Nobody wanted this one.
        if (given.length == 0) Runtime.getRuntime().halt(0);
        takeOver((Map<?, ?>) Json.parse(new String(given, StandardCharsets.UTF_8)));
    }

    private static void takeOver(Map<?, ?> given) {
        String directory = (String) given.get("cwd");
        ByteArrayOutputStream block = new ByteArrayOutputStream();
        for (Object entry : (List<?>) given.get("env")) {
            List<?> pair = (List<?>) entry;
            block.writeBytes(bytes(pair.get(0) + "=" + pair.get(1)));
        }
        // As the shell does that starts the JVM.
        block.writeBytes(bytes("PWD=" + directory));
        if (!take(block.toByteArray(), bytes(directory), bytes(KEPT))) {
            throw new IllegalStateException("the environment could not be taken over");
        }
    }

    private static byte[] bytes(String text) {
        byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
        return Arrays.copyOf(bytes, bytes.length + 1);
    }

    /** The descriptor to wait at, or -1. Looks at what the kernel keeps of the start. */
    private static int descriptor() throws IOException {
        byte[] start;
        try (InputStream input = new FileInputStream("/proc/self/environ")) {
            start = rest(input);
        }
        for (int at = 0; at < start.length; ) {
            int end = at;
            while (end < start.length && start[end] != 0) end++;
            if (end - at > VARIABLE.length && Arrays.equals(start, at, at + VARIABLE.length, VARIABLE, 0, VARIABLE.length)) {
                int from = at + VARIABLE.length;
                return Integer.parseInt(new String(start, from, end - from, StandardCharsets.UTF_8));
            }
            at = end + 1;
        }
        return -1;
    }

    private static byte[] rest(InputStream input) throws IOException {
        ByteArrayOutputStream all = new ByteArrayOutputStream();
        byte[] part = new byte[65536];
        for (int size = input.read(part); size > 0; size = input.read(part)) all.write(part, 0, size);
        return all.toByteArray();
    }

    /** An exchange with a Runtime API, one of its own, and some JSON: so that this code is there when it is needed. */
    private static void exchange() throws Exception {
        Json.write(Json.parse("{\"text\": [1, -2.5, true, null, \"\\u00fc\"]}"));
        try (ServerSocket server = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
            Thread other = new Thread(() -> answer(server));
            other.start();
            Api api = new Api("127.0.0.1:" + server.getLocalPort());
            api.next();
            api.close();
            other.join();
        }
    }

    private static void answer(ServerSocket server) {
        try (Socket socket = server.accept()) {
            socket.getInputStream().read(new byte[4096]);
            // With a reset no port is left behind in TIME_WAIT.
            socket.setSoLinger(true, 0);
            socket.getOutputStream().write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}".getBytes(StandardCharsets.UTF_8));
            socket.getInputStream().read();
        } catch (IOException e) {
            // Then this part of the way is new to the first invocation.
        }
    }
}
