"""The Java runtime. Lambda's own client needs a Maven repository, so what it posts stands here."""

import json
import shutil
import subprocess

import pytest
from runtime_harness import ARN, REQUEST_ID, invocation, lay_out_java, mask, run, write

JAVAC, JAVA = shutil.which("javac"), shutil.which("java")
pytestmark = pytest.mark.skipif(not (JAVAC and JAVA), reason="no JDK on this machine")

SOURCES = {
    "demo/Pojo.java": """
package demo;
import com.amazonaws.services.lambda.runtime.*;
import java.util.*;
public class Pojo implements RequestHandler<Pojo.In, Pojo.Out> {
    public enum Kind { A, B }
    public static class Item { private String sku; private double price; public Kind kind;
        public String getSku() { return sku; } public void setSku(String s) { sku = s; }
        public double getPrice() { return price; } public void setPrice(double p) { price = p; } }
    public static class In { private List<Item> records; private Map<String, Long> counts; private int n; private byte[] data;
        public List<Item> getRecords() { return records; } public void setRecords(List<Item> r) { records = r; }
        public Map<String, Long> getCounts() { return counts; } public void setCounts(Map<String, Long> c) { counts = c; }
        public int getN() { return n; } public void setN(int v) { n = v; }
        public byte[] getData() { return data; } public void setData(byte[] d) { data = d; } }
    public static class Out { private final In in; private final String text; private final Boolean isOpen = true;
        Out(In i, String t) { in = i; text = t; }
        public In getIn() { return in; } public String getText() { return text; } public Boolean getIsOpen() { return isOpen; } }
    public Out handleRequest(In in, Context context) { return new Out(in, null); }
}
""",
    "demo/Base.java": """
package demo;
import com.amazonaws.services.lambda.runtime.*;
public abstract class Base<R, I> implements RequestHandler<I, R> {}
""",
    "demo/Derived.java": """
package demo;
import com.amazonaws.services.lambda.runtime.*;
public class Derived extends Base<String, Pojo.Item> {
    public String handleRequest(Pojo.Item item, Context context) { return item.getSku(); }
}
""",
    "demo/Stream.java": """
package demo;
import com.amazonaws.services.lambda.runtime.*;
import java.io.*;
public class Stream implements RequestStreamHandler {
    public void handleRequest(InputStream in, OutputStream out, Context context) throws IOException { in.transferTo(out); }
}
""",
    "demo/Methods.java": """
package demo;
import com.amazonaws.services.lambda.runtime.*;
import com.amazonaws.services.lambda.runtime.logging.LogLevel;
import java.io.*;
import java.util.*;
public class Methods {
    static class Own extends RuntimeException { Own(String m, Throwable c) { super(m, c); } }
    public String string(String s) { return s + "!"; }
    public Object any(Object o) { return o; }
    public static int sum(List<Integer> l, Context c) { return l.stream().mapToInt(i -> i).sum(); }
    public long number(long n) { return n * 2; }
    public void nothing() {}
    public Void nothingBoxed(Object o) { return null; }
    public void streams(InputStream in, OutputStream out, Context c) throws IOException { out.write("raw".getBytes()); }
    public String overloaded(String s) { return "short"; }
    public String overloaded(String s, Context c) { return "long"; }
    public Object fails(Object o) { throw new Own("broken ünï", new IllegalStateException("why")); }
    public Object failsEmpty(Object o) { throw new NullPointerException(); }
    public Object checked(Object o) throws IOException { throw new FileNotFoundException("gone"); }
    public Object exits(Object o) { System.exit(3); return null; }
    public Object overflow(Object o) { return overflow(o).toString() + 1; }
    public Map<String, Object> fields(Object o, Context c) {
        Map<String, Object> m = new LinkedHashMap<>();
        m.put("name", c.getFunctionName()); m.put("version", c.getFunctionVersion()); m.put("arn", c.getInvokedFunctionArn());
        m.put("memory", c.getMemoryLimitInMB()); m.put("id", c.getAwsRequestId()); m.put("group", c.getLogGroupName());
        m.put("stream", c.getLogStreamName()); m.put("tenant", c.getTenantId());
        m.put("identity", c.getIdentity() == null ? null : c.getIdentity().getIdentityId());
        m.put("custom", c.getClientContext() == null ? null : c.getClientContext().getCustom().get("k"));
        m.put("title", c.getClientContext() == null ? null : c.getClientContext().getClient().getAppTitle());
        m.put("remaining", c.getRemainingTimeInMillis() > 0 && c.getRemainingTimeInMillis() <= 60000);
        m.put("trace", System.getProperty("com.amazonaws.xray.traceHeader"));
        m.put("heap", Runtime.getRuntime().maxMemory() <= 256L * 1024 * 1024);
        return m;
    }
    public void logs(Object o, Context c) {
        System.out.println("printed ünï"); System.err.println("err");
        c.getLogger().log("through the logger\\n"); c.getLogger().log("warned", LogLevel.WARN);
        c.getLogger().log("debugged", LogLevel.DEBUG); c.getLogger().log("bytes".getBytes());
    }
}
""",
    "demo/BadConstructor.java": """
package demo;
public class BadConstructor { public BadConstructor() { throw new IllegalArgumentException("at init"); } public void run() {} }
""",
    "demo/BadStatic.java": """
package demo;
public class BadStatic { static { if (true) throw new IllegalStateException("static"); } public void run() {} }
""",
    "demo/NoInterface.java": "package demo;\npublic class NoInterface {}\n",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The runtime as it is laid out at /var/runtime, and a function's classes."""
    runtime, task = tmp_path_factory.mktemp("runtime"), tmp_path_factory.mktemp("task")
    lay_out_java(runtime, JAVAC)
    sources = write(tmp_path_factory.mktemp("sources"), SOURCES)
    files = sorted(map(str, sources.rglob("*.java")))
    subprocess.run([JAVAC, "--release", "11", "-cp", runtime / "java-api", "-d", task, *files], check=True)
    return [runtime / "bootstrap", JAVA], task


def served(built, handler, *invocations, **options):
    command, task = built
    return run(command, task, handler, invocations or [invocation()], **options)


@pytest.mark.parametrize(
    "handler,payload,body",
    [
        ("demo.Methods::string", '"grüß"', '"grüß!"'),
        ("demo.Methods::any", '{"a":[1,-2.5,true,null,"x\\n\\u00fc"],"big":12345678901}', '{"a":[1,-2.5,true,null,"x\\nü"],"big":12345678901}'),
        ("demo.Methods::sum", "[1, 2, 3]", "6"),
        ("demo.Methods::number", "21", "42"),
        ("demo.Methods::nothing", "{}", "null"),
        ("demo.Methods::nothingBoxed", "{}", "null"),
        ("demo.Methods::streams", "{}", "raw"),
        ("demo.Methods::overloaded", '"x"', '"long"'),
        ("demo.Derived", '{"sku":"s","unknown":{"ignored":1}}', '"s"'),
        ("demo.Stream", '{"as": "is"}', '{"as": "is"}'),
        (
            "demo.Pojo",
            '{"Records":[{"sku":"a","price":1.5,"kind":"B"}],"counts":{"x":5},"n":"7","data":"AQI="}',
            '{"in":{"records":[{"kind":"B","sku":"a","price":1.5}],"counts":{"x":5},"n":7,"data":"AQI="},"text":null,"isOpen":true}',
        ),
    ],
)  # fmt: skip
def test_responses(built, handler, payload, body):
    post = served(built, handler, invocation(payload.encode())).post
    assert (post.path, post.body.decode()) == ("invocation/%s/response" % REQUEST_ID, body)
    assert post.headers["content-type"] == "application/json"


def test_large_payloads_and_reuse(built):
    result = served(built, "demo.Stream", invocation({"large": "x" * 1000000}), invocation(b"{}", status=413), invocation())
    assert len(result.posts) == 3 and len(result.posts[0].json["large"]) == 1000000
    assert "Http response code: 413" in result.stderr and result.exit_code is None


def test_context_fields(built):
    item = invocation(
        Lambda_Runtime_Client_Context='{"custom":{"k":"v"},"client":{"app_title":"t"}}',
        Lambda_Runtime_Cognito_Identity='{"cognitoIdentityId":"i","cognitoIdentityPoolId":"p"}',
        Lambda_Runtime_Aws_Tenant_Id="t-1",
    )
    assert served(built, "demo.Methods::fields", item).post.json == {
        "name": "probe",
        "version": "$LATEST",
        "arn": ARN,
        "memory": 256,
        "id": REQUEST_ID,
        "group": "/aws/lambda/probe",
        "stream": "2026/01/01/[$LATEST]0123456789abcdef",
        "tenant": "t-1",
        "identity": "i",
        "custom": "v",
        "title": "t",
        "remaining": True,
        "trace": "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Parent=9a9197af755a6419;Sampled=1",
        "heap": True,
    }


@pytest.mark.parametrize(
    "handler,payload,error_type,message,header",
    [
        ("demo.Methods::fails", b"{}", "demo.Methods$Own", "broken ünï", "Runtime.UserException"),
        ("demo.Methods::failsEmpty", b"{}", "java.lang.NullPointerException", None, "Runtime.UserException"),
        ("demo.Methods::checked", b"{}", "java.io.FileNotFoundException", "gone", "Runtime.UserException"),
        ("demo.Methods::number", b'{"a":1}', "java.lang.RuntimeException", "An error occurred during JSON parsing", "Runtime.BadFunctionCode"),
        ("demo.Methods::any", b"{bad", "java.lang.RuntimeException", "An error occurred during JSON parsing", "Runtime.BadFunctionCode"),
        ("demo.Absent", b"{}", "java.lang.ClassNotFoundException", "Class not found: demo.Absent", "Runtime.BadFunctionCode"),
        ("demo.Methods::absent", b"{}", None, "No public method named absent with appropriate method signature found on class demo.Methods", "Runtime.BadFunctionCode"),
        ("demo.NoInterface", b"{}", None, "Class does not implement an appropriate handler interface: demo.NoInterface", "Runtime.BadFunctionCode"),
        ("a::b::c", b"{}", None, "Invalid handler: `a::b::c'", "Runtime.BadFunctionCode"),
    ],
)  # fmt: skip
def test_errors(built, handler, payload, error_type, message, header):
    result = served(built, handler, invocation(payload), invocation(payload))
    assert [post.path for post in result.posts] == ["invocation/%s/error" % REQUEST_ID] * 2 and result.exit_code is None
    post = result.posts[0]
    assert post.json.get("errorType") == error_type
    assert post.headers["lambda-runtime-function-error-type"] == header
    if message:
        assert post.json["errorMessage"] == message
        assert message in result.stdout
    if header == "Runtime.UserException":
        assert len(post.json["stackTrace"]) == 1 and post.json["stackTrace"][0].startswith("demo.Methods.")
        assert post.xray_cause["exceptions"][0]["type"] == error_type


@pytest.mark.parametrize(
    "handler,error_type",
    [
        ("demo.BadConstructor::run", "java.lang.IllegalArgumentException"),
        ("demo.BadStatic::run", "java.lang.ExceptionInInitializerError"),
    ],
)
def test_failed_inits(built, handler, error_type):
    result = served(built, handler)
    assert (result.post.path, result.post.json["errorType"]) == ("init/error", error_type)
    assert result.exit_code == 1 and result.nexts == 0


def test_processes_that_end(built):
    result = served(built, "demo.Methods::exits")
    assert (result.posts, result.exit_code) == ([], 3)
    result = served(built, "demo.Methods::overflow")
    assert (result.post.json["errorType"], result.exit_code) == ("java.lang.StackOverflowError", 1)


def test_logs(built):
    result = served(built, "demo.Methods::logs")
    assert result.stderr == "err\n"
    assert result.stdout == "printed ünï\nthrough the logger\n[WARN] warned[DEBUG] debuggedbytes"
    result = served(built, "demo.Methods::logs", log_fd=True, env={"AWS_LAMBDA_LOG_LEVEL": "INFO"})
    assert [(hex(frame.kind), frame.message) for frame in result.frames] == [
        ("0xa55a0003", "through the logger\n"),
        ("0xa55a0013", "[WARN] warned"),
        ("0xa55a0003", "bytes"),
    ]
    result = served(built, "demo.Methods::logs", log_fd=True, env={"AWS_LAMBDA_LOG_FORMAT": "JSON"})
    records = [json.loads(mask(frame.message)) for frame in result.frames]
    assert records[1] == {"timestamp": "TIME", "message": "warned", "level": "WARN", "AWSRequestId": REQUEST_ID}
