// Several invocations at once: a thread for each, with a connection of its own, as on Lambda.
package firelet;

final class Concurrent {
    private Concurrent() {}

    /** Serves with so many threads, this one among them, until the process is not fit for it any longer. */
    static void serve(int threads, String address, Handler handler, Fault broken, Logs logs) throws Exception {
        ClassLoader functions = Thread.currentThread().getContextClassLoader();
        for (int index = 1; index < threads; index++) {
            Thread thread = new Thread(() -> loop(address, handler, broken, logs), "lambda-" + index);
            thread.setContextClassLoader(functions);
            thread.setDaemon(true);
            thread.start();
        }
        loop(address, handler, broken, logs);
    }

    private static void loop(String address, Handler handler, Fault broken, Logs logs) {
        try {
            Api api = new Api(address);
            while (Bootstrap.serve(api, handler, broken, logs, false)) {}
        } catch (Throwable thrown) {
            thrown.printStackTrace();
        }
        // What ends one of them (no memory, no Runtime API) ends all.
        System.exit(1);
    }
}
