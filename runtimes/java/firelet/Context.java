// The context object, as a proxy of the interface that the function was built with.
package firelet;

import java.lang.reflect.InvocationHandler;
import java.lang.reflect.Method;
import java.lang.reflect.Proxy;
import java.nio.charset.StandardCharsets;
import java.util.Collections;
import java.util.Map;

final class Context {
    static final String NAME = "com.amazonaws.services.lambda.runtime.Context";

    private final Map<String, String> headers;
    private final Logs logs;

    private Context(Map<String, String> headers, Logs logs) {
        this.headers = headers;
        this.logs = logs;
    }

    /** A context of interface `type` for the invocation with these headers. */
    static Object of(Class<?> type, Map<String, String> headers, Logs logs) {
        Context context = new Context(headers, logs);
        return proxy(type, (proxy, method, arguments) -> context.get(method));
    }

    private static Object proxy(Class<?> type, InvocationHandler handler) {
        return Proxy.newProxyInstance(type.getClassLoader(), new Class<?>[] {type}, (proxy, method, arguments) -> {
            if (method.getDeclaringClass() != Object.class) return handler.invoke(proxy, method, arguments);
            switch (method.getName()) {
                case "hashCode":
                    return System.identityHashCode(proxy);
                case "equals":
                    return proxy == arguments[0];
                default:
                    return type.getSimpleName() + "@" + Integer.toHexString(System.identityHashCode(proxy));
            }
        });
    }

    private Object get(Method method) {
        switch (method.getName()) {
            case "getAwsRequestId":
                return headers.get("lambda-runtime-aws-request-id");
            case "getInvokedFunctionArn":
                return headers.get("lambda-runtime-invoked-function-arn");
            case "getTenantId":
                return headers.get("lambda-runtime-aws-tenant-id");
            case "getXrayTraceId":
                return headers.get("lambda-runtime-trace-id");
            case "getLogGroupName":
                return System.getenv("AWS_LAMBDA_LOG_GROUP_NAME");
            case "getLogStreamName":
                return System.getenv("AWS_LAMBDA_LOG_STREAM_NAME");
            case "getFunctionName":
                return System.getenv("AWS_LAMBDA_FUNCTION_NAME");
            case "getFunctionVersion":
                return System.getenv("AWS_LAMBDA_FUNCTION_VERSION");
            case "getMemoryLimitInMB":
                return Integer.parseInt(System.getenv().getOrDefault("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128"));
            case "getRemainingTimeInMillis":
                long deadline = Long.parseLong(headers.getOrDefault("lambda-runtime-deadline-ms", "0"));
                return (int) Math.max(0, deadline - System.currentTimeMillis());
            case "getLogger":
                return proxy(method.getReturnType(), (proxy, log, arguments) -> log(arguments));
            case "getIdentity":
                Map<?, ?> identity = object(headers.get("lambda-runtime-cognito-identity"));
                return identity == null ? null : record(method.getReturnType(), identity, "cognito");
            case "getClientContext":
                Map<?, ?> client = object(headers.get("lambda-runtime-client-context"));
                return client == null ? null : clientContext(method.getReturnType(), client);
            default:
                return null;
        }
    }

    private Object log(Object[] arguments) {
        String level = arguments.length > 1 ? String.valueOf(arguments[1]) : "UNDEFINED";
        if (arguments[0] instanceof byte[]) {
            if (Logs.JSON) logs.log(new String((byte[]) arguments[0], StandardCharsets.UTF_8), level, headers);
            else logs.write((byte[]) arguments[0]);
        } else {
            logs.log(String.valueOf(arguments[0]), level, headers);
        }
        return null;
    }

    private static Map<?, ?> object(String json) {
        if (json == null || json.isEmpty()) return null;
        Object value = Json.parse(json);
        return value instanceof Map ? (Map<?, ?>) value : Collections.emptyMap();
    }

    private static Object clientContext(Class<?> type, Map<?, ?> values) {
        return proxy(type, (proxy, method, arguments) -> {
            switch (method.getName()) {
                case "getCustom":
                    return values.get("custom");
                case "getEnvironment":
                    return values.get("env");
                case "getClient":
                    Object client = values.get("client");
                    return client instanceof Map ? record(method.getReturnType(), (Map<?, ?>) client, "") : null;
                default:
                    return null;
            }
        });
    }

    // An interface of text getters over an object: getAppTitle is `appTitle` or `app_title`, with an optional prefix.
    private static Object record(Class<?> type, Map<?, ?> values, String prefix) {
        return proxy(type, (proxy, method, arguments) -> {
            String wanted = prefix + method.getName().substring(3);
            for (Map.Entry<?, ?> entry : values.entrySet()) {
                if (entry.getKey().toString().replace("_", "").equalsIgnoreCase(wanted)) return entry.getValue();
            }
            return null;
        });
    }
}
