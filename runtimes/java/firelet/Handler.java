// The function's handler: found by its name, called with what its signature asks for.
//
// `pkg.Class` implements RequestHandler or RequestStreamHandler; `pkg.Class::method` names any public method that takes
// an event, a Context, both, or streams.
package firelet;

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.InputStream;
import java.io.OutputStream;
import java.lang.reflect.Constructor;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.lang.reflect.Modifier;
import java.lang.reflect.ParameterizedType;
import java.lang.reflect.Type;
import java.lang.reflect.TypeVariable;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Comparator;
import java.util.HashMap;
import java.util.Map;

final class Handler {
    private static final String PACKAGE = "com.amazonaws.services.lambda.runtime.";

    private final Object target;
    private final Method method;
    private final Type[] parameters;

    private Handler(Object target, Method method, Type[] parameters) {
        this.target = target;
        this.method = method;
        this.parameters = parameters;
    }

    /** Finds the handler; throws a Fault that says why there is none. */
    static Handler find(String name, ClassLoader functions) {
        String[] parts = name.split("::", -1);
        if (name.isEmpty() || parts.length > 2 || parts[0].isEmpty() || parts.length == 2 && parts[1].isEmpty()) {
            throw new Fault("Invalid handler: `" + name + "'");
        }
        Class<?> type;
        try {
            type = Class.forName(parts[0], true, functions);
        } catch (ClassNotFoundException e) {
            throw new Fault("Class not found: " + parts[0], e.getClass().getName(), Logs.trace(e), false);
        } catch (Throwable e) {
            String detail = e.getMessage() == null ? "" : ": " + e.getMessage();
            throw new Fault("Error loading class " + parts[0] + detail, e.getClass().getName(), Logs.trace(e), true);
        }
        return parts.length == 1 ? ofInterface(type) : ofMethod(type, parts[1]);
    }

    private static Handler ofInterface(Class<?> type) {
        for (String name : new String[] {"RequestStreamHandler", "RequestHandler"}) {
            Class<?> wanted = interfaceOf(type, PACKAGE + name);
            if (wanted == null) continue;
            Method method = wanted.getMethods()[0];
            Type[] parameters = method.getGenericParameterTypes();
            if (name.equals("RequestHandler")) {
                Type input = firstArgument(type, wanted, new HashMap<>());
                if (input == null || input instanceof TypeVariable && ((TypeVariable<?>) input).getBounds()[0] == Object.class) {
                    throw new Fault("Class " + type.getName() + " does not implement RequestHandler with concrete type parameters");
                }
                parameters = new Type[] {input, parameters[1]};
            }
            method.setAccessible(true);
            return new Handler(instance(type), method, parameters);
        }
        throw new Fault("Class does not implement an appropriate handler interface: " + type.getName());
    }

    private static Class<?> interfaceOf(Class<?> type, String name) {
        for (Class<?> at = type; at != null; at = at.getSuperclass()) {
            for (Class<?> implemented : at.getInterfaces()) {
                if (implemented.getName().equals(name)) return implemented;
                Class<?> above = interfaceOf(implemented, name);
                if (above != null) return above;
            }
        }
        return null;
    }

    // What `wanted`'s first type parameter is for `type`, following the classes and interfaces between them.
    private static Type firstArgument(Type type, Class<?> wanted, Map<TypeVariable<?>, Type> known) {
        if (type == null) return null;
        Class<?> raw = Binder.raw(type);
        if (type instanceof ParameterizedType) {
            Type[] arguments = ((ParameterizedType) type).getActualTypeArguments();
            for (int i = 0; i < arguments.length; i++) {
                Type argument = arguments[i];
                known.put(raw.getTypeParameters()[i], argument instanceof TypeVariable ? known.getOrDefault(argument, argument) : argument);
            }
            if (raw == wanted) return known.get(raw.getTypeParameters()[0]);
        }
        for (Type implemented : raw.getGenericInterfaces()) {
            Type found = firstArgument(implemented, wanted, known);
            if (found != null) return found;
        }
        return firstArgument(raw.getGenericSuperclass(), wanted, known);
    }

    private static Handler ofMethod(Class<?> type, String name) {
        // Bridges last; then the longest signature, in which a closing Context counts for one more.
        Comparator<Method> best = Comparator.comparing(Method::isBridge);
        best = best.thenComparing(method -> -method.getParameterCount() - (endsWithContext(method) ? 1 : 0));
        Method method = Arrays.stream(type.getMethods())
                .filter(candidate -> candidate.getName().equals(name) && usable(candidate.getParameterTypes()))
                .min(best)
                .orElseThrow(() -> new Fault("No public method named " + name
                        + " with appropriate method signature found on class " + type.getName()));
        method.setAccessible(true);
        Object target = Modifier.isStatic(method.getModifiers()) ? null : instance(type);
        return new Handler(target, method, method.getGenericParameterTypes());
    }

    private static boolean endsWithContext(Method method) {
        Class<?>[] types = method.getParameterTypes();
        return types.length > 0 && isContext(types[types.length - 1]);
    }

    private static boolean isContext(Class<?> type) {
        return type.getName().equals(Context.NAME);
    }

    private static boolean usable(Class<?>[] types) {
        int count = types.length;
        if (count > 0 && isContext(types[count - 1])) count--;
        if (count == 2) return types[0] == InputStream.class && types[1] == OutputStream.class;
        return count <= 1;
    }

    private static Object instance(Class<?> type) {
        try {
            Constructor<?> constructor = type.getConstructor();
            constructor.setAccessible(true);
            return constructor.newInstance();
        } catch (NoSuchMethodException e) {
            boolean inner = type.getEnclosingClass() != null && !Modifier.isStatic(type.getModifiers());
            String why = inner
                    ? " cannot be instantiated because it is a non-static inner class"
                    : " has no public zero-argument constructor";
            throw new Fault("Class " + type.getName() + why, Exception.class.getName(), null, false);
        } catch (InvocationTargetException e) {
            throw Fault.of(e.getCause() == null ? e : e.getCause(), true);
        } catch (ReflectiveOperationException e) {
            throw Fault.of(e, false);
        }
    }

    /** Calls the handler with an event and returns the response. */
    byte[] call(byte[] event, Map<String, String> headers, Logs logs) throws Throwable {
        ByteArrayOutputStream output = null;
        Object[] arguments = new Object[parameters.length];
        for (int i = 0; i < arguments.length; i++) {
            Class<?> type = Binder.raw(parameters[i]);
            if (type == InputStream.class) arguments[i] = new ByteArrayInputStream(event);
            else if (type == OutputStream.class) arguments[i] = output = new ByteArrayOutputStream();
            else if (isContext(type)) arguments[i] = Context.of(type, headers, logs);
            else arguments[i] = read(event, parameters[i]);
        }
        Object result;
        try {
            result = method.invoke(target, arguments);
        } catch (InvocationTargetException e) {
            throw e.getCause() == null ? e : e.getCause();
        }
        if (output != null) return output.toByteArray();
        try {
            return Json.write(Binder.tree(result)).getBytes(StandardCharsets.UTF_8);
        } catch (ReflectiveOperationException | RuntimeException | StackOverflowError e) {
            throw new Fault("An error occurred during serialization of the response", e.getClass().getName(), Logs.trace(e), false);
        }
    }

    private static Object read(byte[] event, Type type) {
        try {
            return Binder.read(Json.parse(new String(event, StandardCharsets.UTF_8)), type);
        } catch (ReflectiveOperationException | RuntimeException e) {
            String trace = Logs.trace(e);
            throw new Fault("An error occurred during JSON parsing", RuntimeException.class.getName(), trace, false);
        }
    }
}
