// JSON text to and from trees of maps, lists, strings, numbers, booleans and null.
package firelet;

import java.math.BigDecimal;
import java.math.BigInteger;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

final class Json {
    /** The text is not JSON. */
    static final class SyntaxException extends RuntimeException {
        SyntaxException(String message) {
            super(message);
        }
    }

    private static final int MAX_DEPTH = 1000;

    private final String text;
    private int at;
    private int depth;

    private Json(String text) {
        this.text = text;
    }

    /** The value of a whole document. Whole numbers are the smallest of Integer, Long and BigInteger, others Double. */
    static Object parse(String text) {
        Json json = new Json(text);
        Object value = json.value();
        json.space();
        if (json.at != text.length()) throw json.wrong();
        return value;
    }

    private SyntaxException wrong() {
        return new SyntaxException(
                at < text.length() ? "unexpected '" + text.charAt(at) + "' at position " + at : "unexpected end of input");
    }

    private void space() {
        while (at < text.length() && " \t\r\n".indexOf(text.charAt(at)) >= 0) at++;
    }

    private char peek() {
        space();
        if (at >= text.length()) throw wrong();
        return text.charAt(at);
    }

    private boolean take(char c) {
        if (peek() != c) return false;
        at++;
        return true;
    }

    private void expect(char c) {
        if (!take(c)) throw wrong();
    }

    private Object value() {
        if (++depth > MAX_DEPTH) throw new SyntaxException("nested deeper than " + MAX_DEPTH);
        char c = peek();
        Object value;
        if (c == '{') value = object();
        else if (c == '[') value = array();
        else if (c == '"') value = string();
        else if (c == 't') value = word("true", Boolean.TRUE);
        else if (c == 'f') value = word("false", Boolean.FALSE);
        else if (c == 'n') value = word("null", null);
        else value = number();
        depth--;
        return value;
    }

    private Object word(String word, Object value) {
        if (!text.startsWith(word, at)) throw wrong();
        at += word.length();
        return value;
    }

    private Map<String, Object> object() {
        Map<String, Object> object = new LinkedHashMap<>();
        expect('{');
        if (take('}')) return object;
        do {
            if (peek() != '"') throw wrong();
            String name = string();
            expect(':');
            object.put(name, value());
        } while (take(','));
        expect('}');
        return object;
    }

    private List<Object> array() {
        List<Object> array = new ArrayList<>();
        expect('[');
        if (take(']')) return array;
        do array.add(value());
        while (take(','));
        expect(']');
        return array;
    }

    private String string() {
        int start = ++at;
        while (at < text.length() && text.charAt(at) != '"' && text.charAt(at) != '\\' && text.charAt(at) >= ' ') at++;
        if (at < text.length() && text.charAt(at) == '"') return text.substring(start, at++);
        StringBuilder out = new StringBuilder(text.substring(start, at));
        while (true) {
            if (at >= text.length() || text.charAt(at) < ' ') throw wrong();
            char c = text.charAt(at++);
            if (c == '"') return out.toString();
            out.append(c == '\\' ? escaped() : c);
        }
    }

    private char escaped() {
        if (at >= text.length()) throw wrong();
        char c = text.charAt(at++);
        int plain = "\"\\/".indexOf(c);
        if (plain >= 0) return c;
        int named = "bfnrt".indexOf(c);
        if (named >= 0) return "\b\f\n\r\t".charAt(named);
        if (c != 'u' || at + 4 > text.length()) throw wrong();
        try {
            char unit = (char) Integer.parseInt(text.substring(at, at + 4), 16);
            at += 4;
            return unit;
        } catch (NumberFormatException e) {
            throw wrong();
        }
    }

    private Number number() {
        int start = at;
        boolean whole = true;
        while (at < text.length() && "+-.0123456789eE".indexOf(text.charAt(at)) >= 0) {
            char c = text.charAt(at++);
            if (c == '.' || c == 'e' || c == 'E') whole = false;
        }
        String digits = text.substring(start, at);
        try {
            if (!whole) return Double.valueOf(digits);
            if (digits.length() > 18) {
                BigInteger big = new BigInteger(digits);
                return big.bitLength() < 64 ? (Number) big.longValueExact() : big;
            }
            long value = Long.parseLong(digits);
            return value == (int) value ? (Number) (int) value : (Number) value;
        } catch (NumberFormatException e) {
            at = start;
            throw wrong();
        }
    }

    /** The text of a tree. */
    static String write(Object value) {
        StringBuilder out = new StringBuilder();
        write(value, out);
        return out.toString();
    }

    private static void write(Object value, StringBuilder out) {
        if (value instanceof String) quote((String) value, out);
        else if (value instanceof Map) {
            String separator = "{";
            for (Map.Entry<?, ?> entry : ((Map<?, ?>) value).entrySet()) {
                out.append(separator);
                quote(String.valueOf(entry.getKey()), out);
                out.append(':');
                write(entry.getValue(), out);
                separator = ",";
            }
            out.append(separator.equals("{") ? "{}" : "}");
        } else if (value instanceof List) {
            String separator = "[";
            for (Object item : (List<?>) value) {
                out.append(separator);
                write(item, out);
                separator = ",";
            }
            out.append(separator.equals("[") ? "[]" : "]");
        } else if (value instanceof BigDecimal) out.append(((BigDecimal) value).toString());
        else if (value instanceof Double && !Double.isFinite((Double) value)
                || value instanceof Float && !Float.isFinite((Float) value)) quote(value.toString(), out);
        else out.append(value);
    }

    private static void quote(String text, StringBuilder out) {
        out.append('"');
        for (int i = 0; i < text.length(); i++) {
            char c = text.charAt(i);
            int named = "\"\\\b\f\n\r\t".indexOf(c);
            if (named >= 0) out.append('\\').append("\"\\bfnrt".charAt(named));
            else if (c < ' ') out.append(String.format("\\u%04x", (int) c));
            else out.append(c);
        }
        out.append('"');
    }
}
