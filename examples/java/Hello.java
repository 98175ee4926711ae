import java.util.LinkedHashMap;
import java.util.Map;

/** Greets, and counts the invocations of its execution environment. Needs no library: the handler is a plain method. */
public class Hello {
    private int count;

    public Map<String, Object> handle(Map<String, Object> event) {
        Map<String, Object> answer = new LinkedHashMap<>();
        answer.put("message", "Hello, " + event.getOrDefault("name", "world") + "!");
        answer.put("environment", System.getenv("AWS_LAMBDA_LOG_STREAM_NAME"));
        answer.put("invocations_here", ++count);
        answer.put("java", System.getProperty("java.specification.version"));
        return answer;
    }
}
