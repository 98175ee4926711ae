// The Java runtime: loads the handler and serves invocations from the Runtime API 2018-06-01.
//
// Java 11 or newer; compiled when Firelet is built. Refers to no class of aws-lambda-java-core: those that a function
// brings are found by name. What a function can observe (error reports, log texts, which faults end the process) follows
// Lambda's own client. Not supported: custom POJO serializers.
package firelet;

import java.io.IOError;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;

public final class Bootstrap {
    private static final String FUNCTION_CODE = "Runtime.BadFunctionCode";
    private static final String USER_EXCEPTION = "Runtime.UserException";
    private static final String TRACE_PROPERTY = "com.amazonaws.xray.traceHeader";

    private Bootstrap() {}

    public static void main(String[] arguments) throws Exception {
        Path runtime = Path.of(Bootstrap.class.getProtectionDomain().getCodeSource().getLocation().toURI()).getParent();
        Prestart.waitIfAsked(runtime);
        ClassLoader functions = Functions.loader(runtime);
        Thread.currentThread().setContextClassLoader(functions);
        Logs logs = new Logs();
        String address = System.getenv("AWS_LAMBDA_RUNTIME_API");
        Api api = new Api(address);
        String name = System.getenv().getOrDefault("_HANDLER", arguments.length > 0 ? arguments[0] : "");
        Handler handler = null;
        Fault fault = null;
        try {
            handler = Handler.find(name, functions);
        } catch (Fault e) {
            fault = e;
            if (fault.fatal) {
                logs.error(fault, Map.of());
                api.failInit(report(fault), FUNCTION_CODE);
                System.exit(1);
            }
        }
        if (SnapStart.isWanted()) SnapStart.completeInit(api, logs);
        int concurrency = Integer.parseInt(System.getenv().getOrDefault("AWS_LAMBDA_MAX_CONCURRENCY", "1"));
        if (concurrency > 1) Concurrent.serve(concurrency, address, handler, fault, logs);
        while (serve(api, handler, fault, logs, true)) {}
        System.exit(1);
    }

    /** Serves one invocation, `alone` or beside others; whether the process is fit for another one. */
    static boolean serve(Api api, Handler handler, Fault broken, Logs logs, boolean alone) throws Exception {
        Api.Answer invocation = api.next();
        String id = invocation.headers.get("lambda-runtime-aws-request-id");
        String trace = invocation.headers.get("lambda-runtime-trace-id");
        // A property is everybody's; beside others the context alone tells it.
        if (trace == null || !alone) System.clearProperty(TRACE_PROPERTY);
        else System.setProperty(TRACE_PROPERTY, trace);
        try {
            if (broken != null) throw broken;
            byte[] response = handler.call(invocation.body, invocation.headers, logs);
            System.out.flush();
            api.respond(id, response);
            // The interrupt of a handler that was not looked at must not hit the next one.
            Thread.interrupted();
            return true;
        } catch (Fault fault) {
            logs.error(fault, invocation.headers);
            api.fail(id, report(fault), FUNCTION_CODE, null);
            return !fault.fatal;
        } catch (Throwable thrown) {
            Logs.trim(thrown, new HashSet<>());
            logs.error(Fault.of(thrown, false), invocation.headers);
            api.fail(id, report(thrown), USER_EXCEPTION, xrayCause(thrown));
            return !(thrown instanceof VirtualMachineError || thrown instanceof IOError);
        }
    }

    private static Map<String, Object> report(Fault fault) {
        Map<String, Object> report = new LinkedHashMap<>();
        report.put("errorMessage", fault.getMessage());
        if (fault.type != null) report.put("errorType", fault.type);
        return report;
    }

    static Map<String, Object> report(Throwable thrown) {
        List<Object> frames = new ArrayList<>();
        for (StackTraceElement frame : thrown.getStackTrace()) frames.add(frame.toString());
        Map<String, Object> report = new LinkedHashMap<>();
        report.put("errorMessage", Logs.message(thrown));
        report.put("errorType", thrown.getClass().getName());
        report.put("stackTrace", frames);
        return report;
    }

    private static String xrayCause(Throwable thrown) {
        List<Object> stack = new ArrayList<>();
        Set<String> paths = new LinkedHashSet<>();
        for (StackTraceElement frame : thrown.getStackTrace()) {
            Map<String, Object> entry = new LinkedHashMap<>();
            entry.put("label", frame.getMethodName());
            entry.put("path", frame.getFileName());
            entry.put("line", frame.getLineNumber());
            stack.add(entry);
            if (frame.getFileName() != null) paths.add(frame.getFileName());
        }
        Map<String, Object> exception = new LinkedHashMap<>();
        exception.put("message", thrown.getMessage());
        exception.put("type", thrown.getClass().getName());
        exception.put("stack", stack);
        Map<String, Object> cause = new LinkedHashMap<>();
        cause.put("working_directory", System.getProperty("user.dir"));
        cause.put("exceptions", Collections.singletonList(exception));
        cause.put("paths", new ArrayList<Object>(paths));
        String text = Json.write(cause);
        // Headers are bytes; what is not ASCII is escaped.
        StringBuilder ascii = new StringBuilder();
        for (char c : text.toCharArray()) {
            if (c < 0x7f) ascii.append(c);
            else ascii.append(String.format("\\u%04x", (int) c));
        }
        return ascii.toString();
    }
}
