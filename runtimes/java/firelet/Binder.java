// Trees of JSON values to and from the Java types of handlers.
//
// Supported: String, primitives and their boxes, BigInteger, BigDecimal, enums, byte[] and ByteBuffer (base64), Date
// (milliseconds or ISO text), arrays, collections, maps, records, and beans with public getters and setters or public
// fields. Names match without regard to case (`Records`, `eventSourceARN`), because Lambda's event classes need that.
// Annotations of JSON libraries are not read; a handler that needs them takes streams.
package firelet;

import java.lang.reflect.Array;
import java.lang.reflect.Constructor;
import java.lang.reflect.Field;
import java.lang.reflect.GenericArrayType;
import java.lang.reflect.Method;
import java.lang.reflect.Modifier;
import java.lang.reflect.ParameterizedType;
import java.lang.reflect.Type;
import java.lang.reflect.TypeVariable;
import java.lang.reflect.WildcardType;
import java.math.BigDecimal;
import java.math.BigInteger;
import java.nio.ByteBuffer;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Base64;
import java.util.Collection;
import java.util.Date;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;

final class Binder {
    private Binder() {}

    private static final Map<Class<?>, Map<String, Method>> SETTERS = new HashMap<>();
    private static final Map<Class<?>, Map<String, Method>> GETTERS = new HashMap<>();

    /** The raw class of a type. */
    static Class<?> raw(Type type) {
        if (type instanceof Class) return (Class<?>) type;
        if (type instanceof ParameterizedType) return raw(((ParameterizedType) type).getRawType());
        if (type instanceof TypeVariable) return raw(((TypeVariable<?>) type).getBounds()[0]);
        if (type instanceof WildcardType) return raw(((WildcardType) type).getUpperBounds()[0]);
        if (type instanceof GenericArrayType) {
            return Array.newInstance(raw(((GenericArrayType) type).getGenericComponentType()), 0).getClass();
        }
        return Object.class;
    }

    private static Type argument(Type type, int index) {
        if (!(type instanceof ParameterizedType)) return Object.class;
        Type[] arguments = ((ParameterizedType) type).getActualTypeArguments();
        return index < arguments.length ? arguments[index] : Object.class;
    }

    /** A tree as a value of a Java type. */
    static Object read(Object tree, Type type) throws ReflectiveOperationException {
        Class<?> target = raw(type);
        if (tree == null) {
            if (!target.isPrimitive()) return null;
            return Array.get(Array.newInstance(target, 1), 0);
        }
        if (target == Object.class) return tree;
        if (target == String.class || target == CharSequence.class) {
            if (tree instanceof Map || tree instanceof List) throw mismatch(tree, target);
            return tree.toString();
        }
        if (target == boolean.class || target == Boolean.class) {
            if (tree instanceof Boolean) return tree;
            if (tree instanceof String) return Boolean.valueOf((String) tree);
            throw mismatch(tree, target);
        }
        if (target == char.class || target == Character.class) {
            if (tree instanceof String && ((String) tree).length() == 1) return ((String) tree).charAt(0);
            throw mismatch(tree, target);
        }
        if (target.isPrimitive() || Number.class.isAssignableFrom(target)) return number(tree, target);
        if (target.isEnum()) {
            for (Object constant : target.getEnumConstants()) if (((Enum<?>) constant).name().equals(tree)) return constant;
            throw mismatch(tree, target);
        }
        if (target == Date.class || target == Instant.class) {
            Instant instant = tree instanceof Number ? instant((Number) tree) : Instant.parse(tree.toString());
            return target == Date.class ? Date.from(instant) : instant;
        }
        if (tree instanceof String) return fromText((String) tree, target);
        if (target.isArray() && tree instanceof List) {
            List<?> items = (List<?>) tree;
            Type element = type instanceof GenericArrayType
                    ? ((GenericArrayType) type).getGenericComponentType()
                    : target.getComponentType();
            Object array = Array.newInstance(target.getComponentType(), items.size());
            for (int i = 0; i < items.size(); i++) Array.set(array, i, read(items.get(i), element));
            return array;
        }
        if (Collection.class.isAssignableFrom(target) || target == Iterable.class) {
            if (!(tree instanceof List)) throw mismatch(tree, target);
            Collection<Object> items = collection(target);
            for (Object item : (List<?>) tree) items.add(read(item, argument(type, 0)));
            return items;
        }
        if (!(tree instanceof Map)) throw mismatch(tree, target);
        Map<?, ?> object = (Map<?, ?>) tree;
        if (Map.class.isAssignableFrom(target)) {
            Map<Object, Object> map = map(target);
            for (Map.Entry<?, ?> entry : object.entrySet()) {
                map.put(read(entry.getKey(), argument(type, 0)), read(entry.getValue(), argument(type, 1)));
            }
            return map;
        }
        return isRecord(target) ? record(object, target) : bean(object, target);
    }

    private static Instant instant(Number number) {
        // Kinesis and DynamoDB give seconds with a fraction, everything else milliseconds.
        double value = number.doubleValue();
        return Instant.ofEpochMilli(Math.abs(value) < 1e11 ? Math.round(value * 1000) : number.longValue());
    }

    private static IllegalArgumentException mismatch(Object tree, Class<?> target) {
        String what = tree instanceof Map ? "an object" : tree instanceof List ? "an array" : Json.write(tree);
        return new IllegalArgumentException("Cannot make a " + target.getName() + " from " + what);
    }

    private static Object number(Object tree, Class<?> target) {
        if (!(tree instanceof Number || tree instanceof String)) throw mismatch(tree, target);
        BigDecimal value = new BigDecimal(tree.toString());
        if (target == int.class || target == Integer.class) return value.intValue();
        if (target == long.class || target == Long.class) return value.longValue();
        if (target == double.class || target == Double.class) return value.doubleValue();
        if (target == float.class || target == Float.class) return value.floatValue();
        if (target == short.class || target == Short.class) return value.shortValue();
        if (target == byte.class || target == Byte.class) return value.byteValue();
        if (target == BigInteger.class) return value.toBigInteger();
        if (target == BigDecimal.class) return value;
        if (target == Number.class && tree instanceof Number) return tree;
        throw mismatch(tree, target);
    }

    private static Object fromText(String text, Class<?> target) throws ReflectiveOperationException {
        if (target == byte[].class) return Base64.getDecoder().decode(text);
        if (target == ByteBuffer.class) return ByteBuffer.wrap(Base64.getDecoder().decode(text));
        if (target == java.util.UUID.class) return java.util.UUID.fromString(text);
        try {
            return target.getConstructor(String.class).newInstance(text);
        } catch (NoSuchMethodException e) {
            throw mismatch(text, target);
        }
    }

    @SuppressWarnings("unchecked")
    private static Collection<Object> collection(Class<?> target) throws ReflectiveOperationException {
        if (target.isAssignableFrom(ArrayList.class)) return new ArrayList<>();
        if (target.isAssignableFrom(LinkedHashSet.class) || target == Set.class) return new LinkedHashSet<>();
        return (Collection<Object>) target.getConstructor().newInstance();
    }

    @SuppressWarnings("unchecked")
    private static Map<Object, Object> map(Class<?> target) throws ReflectiveOperationException {
        if (target.isAssignableFrom(LinkedHashMap.class)) return new LinkedHashMap<>();
        if (target.isAssignableFrom(TreeMap.class)) return new TreeMap<>();
        return (Map<Object, Object>) target.getConstructor().newInstance();
    }

    // Records are newer than the release that this is compiled for.
    private static boolean isRecord(Class<?> type) {
        return type.getSuperclass() != null && type.getSuperclass().getName().equals("java.lang.Record");
    }

    private static List<Field> components(Class<?> type) {
        List<Field> fields = new ArrayList<>();
        for (Field field : type.getDeclaredFields()) if (!Modifier.isStatic(field.getModifiers())) fields.add(field);
        return fields;
    }

    private static Object record(Map<?, ?> object, Class<?> target) throws ReflectiveOperationException {
        List<Field> components = components(target);
        Class<?>[] types = new Class<?>[components.size()];
        Object[] values = new Object[components.size()];
        for (int i = 0; i < types.length; i++) {
            types[i] = components.get(i).getType();
            values[i] = read(object.get(components.get(i).getName()), components.get(i).getGenericType());
        }
        Constructor<?> constructor = target.getDeclaredConstructor(types);
        constructor.setAccessible(true);
        return constructor.newInstance(values);
    }

    private static Object bean(Map<?, ?> object, Class<?> target) throws ReflectiveOperationException {
        Constructor<?> constructor = target.getDeclaredConstructor();
        constructor.setAccessible(true);
        Object bean = constructor.newInstance();
        Map<String, Method> setters = SETTERS.computeIfAbsent(target, Binder::settersOf);
        for (Map.Entry<?, ?> entry : object.entrySet()) {
            String name = (String) entry.getKey();
            Method setter = setters.get(name);
            if (setter != null) setter.invoke(bean, read(entry.getValue(), setter.getGenericParameterTypes()[0]));
            else setField(bean, name, entry.getValue());
        }
        return bean;
    }

    private static void setField(Object bean, String name, Object tree) throws ReflectiveOperationException {
        for (Field field : bean.getClass().getFields()) {
            int modifiers = field.getModifiers();
            if (field.getName().equalsIgnoreCase(name) && !Modifier.isStatic(modifiers) && !Modifier.isFinal(modifiers)) {
                field.setAccessible(true);
                field.set(bean, read(tree, field.getGenericType()));
            }
        }
    }

    private static Map<String, Method> settersOf(Class<?> type) {
        Map<String, Method> setters = new TreeMap<>(String.CASE_INSENSITIVE_ORDER);
        for (Method method : type.getMethods()) {
            String name = method.getName();
            if (name.startsWith("set") && name.length() > 3 && method.getParameterCount() == 1 && !method.isBridge()) {
                method.setAccessible(true);
                // Of overloads the one that takes what the getter gives is meant; text is the usual other one.
                Method other = setters.get(name.substring(3));
                if (other == null || other.getParameterTypes()[0] == String.class) setters.put(name.substring(3), method);
            }
        }
        return setters;
    }

    /** A Java value as a tree. */
    static Object tree(Object value) throws ReflectiveOperationException {
        if (value == null || value instanceof String || value instanceof Number || value instanceof Boolean) return value;
        if (value instanceof CharSequence || value instanceof Character) return value.toString();
        if (value instanceof Enum) return ((Enum<?>) value).name();
        if (value instanceof Date) return ((Date) value).getTime();
        if (value instanceof byte[]) return Base64.getEncoder().encodeToString((byte[]) value);
        if (value instanceof ByteBuffer) {
            ByteBuffer buffer = ((ByteBuffer) value).duplicate();
            byte[] bytes = new byte[buffer.remaining()];
            buffer.get(bytes);
            return Base64.getEncoder().encodeToString(bytes);
        }
        if (value instanceof Map) {
            Map<String, Object> object = new LinkedHashMap<>();
            for (Map.Entry<?, ?> entry : ((Map<?, ?>) value).entrySet()) {
                object.put(String.valueOf(entry.getKey()), tree(entry.getValue()));
            }
            return object;
        }
        List<Object> items = new ArrayList<>();
        if (value instanceof Iterable) {
            for (Object item : (Iterable<?>) value) items.add(tree(item));
            return items;
        }
        if (value.getClass().isArray()) {
            for (int i = 0; i < Array.getLength(value); i++) items.add(tree(Array.get(value, i)));
            return items;
        }
        if (value.getClass().getName().startsWith("java.")) return value.toString();
        return properties(value);
    }

    private static Map<String, Object> properties(Object bean) throws ReflectiveOperationException {
        Map<String, Object> object = new LinkedHashMap<>();
        if (isRecord(bean.getClass())) {
            for (Field component : components(bean.getClass())) {
                Method accessor = bean.getClass().getDeclaredMethod(component.getName());
                accessor.setAccessible(true);
                object.put(component.getName(), tree(accessor.invoke(bean)));
            }
            return object;
        }
        for (Field field : bean.getClass().getFields()) {
            if (Modifier.isStatic(field.getModifiers())) continue;
            field.setAccessible(true);
            object.put(field.getName(), tree(field.get(bean)));
        }
        for (Map.Entry<String, Method> getter : GETTERS.computeIfAbsent(bean.getClass(), Binder::gettersOf).entrySet()) {
            object.put(getter.getKey(), tree(getter.getValue().invoke(bean)));
        }
        return object;
    }

    private static Map<String, Method> gettersOf(Class<?> type) {
        Map<String, Method> byName = new TreeMap<>();
        for (Method method : type.getMethods()) {
            String name = method.getName();
            Class<?> result = method.getReturnType();
            boolean is = name.startsWith("is") && name.length() > 2 && (result == boolean.class || result == Boolean.class);
            boolean get = name.startsWith("get") && name.length() > 3 && result != void.class;
            if (!is && !get || method.getParameterCount() > 0 || method.isBridge()) continue;
            if (Modifier.isStatic(method.getModifiers()) || method.getDeclaringClass() == Object.class) continue;
            method.setAccessible(true);
            byName.put(decapitalized(name.substring(is ? 2 : 3)), method);
        }
        // In the order of the fields, as far as there are such.
        Map<String, Method> getters = new LinkedHashMap<>();
        for (Class<?> declaring = type; declaring != null; declaring = declaring.getSuperclass()) {
            for (Field field : declaring.getDeclaredFields()) {
                Method getter = byName.remove(field.getName());
                if (getter != null) getters.put(field.getName(), getter);
            }
        }
        getters.putAll(byName);
        return getters;
    }

    // `StatusCode` is `statusCode`, `URL` is `url`.
    private static String decapitalized(String name) {
        StringBuilder out = new StringBuilder(name);
        for (int i = 0; i < out.length() && Character.isUpperCase(out.charAt(i)); i++) {
            out.setCharAt(i, Character.toLowerCase(out.charAt(i)));
        }
        return out.toString();
    }
}
