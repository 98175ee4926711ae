"""What the runtimes do around a snapshot: the function's hooks, `restore/next`, failures, and what clones draw anew."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runtime_harness import RUNTIMES, invocation, lay_out_java, lay_out_node, mask, run, write

MODULES = Path(os.environ.get("FIRELET_TEST_NODE_MODULES", "/nonexistent"))
NODES = [path for path in (shutil.which("node"), *sorted(MODULES.glob("node-*/bin/node"))) if path]
RUBY, JAVAC, JAVA = shutil.which("ruby"), shutil.which("javac"), shutil.which("java")
SNAP_START = {"AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start"}
PYTHON = [sys.executable, "-S", RUNTIMES / "python" / "bootstrap.py"]
TYPE = "lambda-runtime-function-error-type"


def restored(command, task, handler, env=None, **options):
    """What a function with hooks has written to `said` when it answers, with the moment of the restore in between."""
    said = task / "said"
    said.write_text("")

    def on_restore():
        with said.open("a") as file:
            file.write("restored\n")

    ran = run(command, task, handler, [invocation()], {**SNAP_START, **(env or {})}, on_restore=on_restore, **options)
    return ran, said.read_text().split()


ORDER = ["init", "before-2", "before-1", "restored", "after-1", "after-2", "invoked"]


# ---------------------------------------------------------------------------------------------------------------------
# Python

PYTHON_TASK = {
    "app.py": """
import random, sys
from snapshot_restore_py import register_after_restore, register_before_snapshot
random.seed(1)
def say(word, suffix=""):
    with open("said", "a") as file:
        print(word + suffix, file=file)
say("init")
register_before_snapshot(say, "before", suffix="-1")
@register_before_snapshot
def second():
    say("before-2")
register_after_restore(say, "after-1")
@register_after_restore
def second_after():
    say("after-2")
def handler(event, context):
    say("invoked")
    return random.random()
""",
    "bad_before.py": """
import snapshot_restore_py
def handler(event, context): pass
@snapshot_restore_py.register_before_snapshot
def bad():
    print("in the hook")
    raise ValueError("not now")
""",
    "bad_after.py": """
import snapshot_restore_py
def handler(event, context): pass
@snapshot_restore_py.register_after_restore
def bad():
    raise KeyError("gone")
""",
    "leaves.py": """
import snapshot_restore_py, sys
def handler(event, context): pass
snapshot_restore_py.register_after_restore(lambda code: sys.exit(code), 3)
""",
    "hookless.py": "def handler(event, context):\n    import sys\n    return 'snapshot_restore_py' in sys.modules\n",
    "own/snapshot_restore_py.py": """
ran = []
def get_before_snapshot(): return []
def get_after_restore(): return [(ran.append, (1,), {})]
""",
    "own/app.py": "import snapshot_restore_py\ndef handler(event, context): return snapshot_restore_py.ran\n",
}


class TestPython:
    def test_hooks_run_around_the_restore(self, tmp_path):
        ran, said = restored(PYTHON, write(tmp_path, PYTHON_TASK), "app.handler")
        assert said == ORDER and ran.exit_code is None
        # The sequence that began with seed 1 does not go on.
        assert ran.post.path.endswith("/response") and ran.post.json != 0.13436424411240122

    def test_without_snap_start_nothing_of_it_happens(self, tmp_path):
        write(tmp_path, PYTHON_TASK)
        assert run(PYTHON, tmp_path, "app.handler", [invocation()]).post.json == 0.13436424411240122
        assert (tmp_path / "said").read_text().split() == ["init", "invoked"]

    def test_a_function_without_hooks_is_snapshotted_too(self, tmp_path):
        ran, said = restored(PYTHON, write(tmp_path, PYTHON_TASK), "hookless.handler")
        assert said == ["restored"] and ran.post.json is False

    def test_a_library_of_the_functions_own_comes_first(self, tmp_path):
        task = write(tmp_path, PYTHON_TASK) / "own"
        assert restored(PYTHON, task, "app.handler")[0].post.json == [1]

    @pytest.mark.parametrize(
        "handler,path,kind,body,code",
        [
            ("bad_before.handler", "init/error", "Runtime.BeforeSnapshotError", ("ValueError", "not now"), 64),
            ("bad_after.handler", "restore/error", "Runtime.AfterRestoreError", ("KeyError", "'gone'"), 65),
            ("leaves.handler", "restore/error", "Runtime.AfterRestoreError", ("SystemExit", "3"), 65),
        ],
    )
    def test_a_failed_hook_is_reported_and_ends_the_process(self, tmp_path, handler, path, kind, body, code):
        ran, _ = restored(PYTHON, write(tmp_path, PYTHON_TASK), handler)
        assert (ran.post.path, ran.post.headers[TYPE], ran.exit_code) == (path, kind, code)
        assert (ran.post.json["errorType"], ran.post.json["errorMessage"]) == body
        assert not any("firelet_" in line for line in ran.post.json["stackTrace"])
        assert "[ERROR] %s: %s" % body in ran.stdout and ran.nexts == 0

    @pytest.mark.skipif(importlib.util.find_spec("awslambdaric") is None, reason="awslambdaric is not installed")
    @pytest.mark.parametrize("handler", ["app.handler", "bad_before.handler", "bad_after.handler", "leaves.handler", "hookless.handler"])
    def test_what_is_posted_is_the_references(self, tmp_path, handler):
        write(tmp_path, PYTHON_TASK)
        (ours, said), (theirs, said_to_theirs) = (
            restored(command, tmp_path, handler, arguments=[handler]) for command in (PYTHON, [sys.executable, "-m", "awslambdaric"])
        )
        assert said == said_to_theirs and ours.exit_code == theirs.exit_code
        for mine, other in zip(ours.posts, theirs.posts, strict=True):
            assert (mine.path, mine.headers.get(TYPE)) == (other.path, other.headers.get(TYPE))
            if mine.path.endswith("/error"):
                # The reference shows a frame of its own.
                stack = [line for line in other.json["stackTrace"] if "awslambdaric" not in line]
                assert mine.json == {**other.json, "stackTrace": stack}
        heads = [[line for line in mask(ran.stdout).splitlines() if "[ERROR]" in line] for ran in (ours, theirs)]
        assert heads[0] == heads[1]

    def test_an_environment_without_snapshots_refuses(self, tmp_path):
        ran = run(PYTHON, write(tmp_path, PYTHON_TASK), "hookless.handler", [invocation()], SNAP_START)
        assert (ran.post.path, ran.exit_code) == ("init/error", 64)
        assert "refused restore/next with status 404" in ran.post.json["errorMessage"]

    def test_clones_draw_numbers_of_their_own(self, preload, tmp_path):
        code = """
import ctypes, os, random, ssl, sys, types
sys.path.insert(0, %r)
import firelet_snapstart
random.seed(7); ssl.RAND_bytes(8)
numpy = sys.modules["numpy.random"] = types.ModuleType("numpy.random")
numpy.drawn = 0
def seed(): numpy.drawn = os.urandom(8).hex()
numpy.seed = seed
def clone():
    for _ in range(2):
        # Not `os.fork`, at which Python seeds anew.
        if ctypes.PyDLL(None).syscall(57) == 0:
            return
        os.wait()
    os._exit(0)
class Api:
    restore_next = staticmethod(clone)
class Sink:
    flush = staticmethod(lambda: None)
if sys.argv[1] == "drawing":
    firelet_snapstart.complete_init(Api, Sink)
else:
    clone()
print(random.random(), ssl.RAND_bytes(8).hex(), numpy.drawn)
"""
        command = [sys.executable, "-c", code % str(RUNTIMES / "python")]
        check_clones(command, preload, 3)


# ---------------------------------------------------------------------------------------------------------------------
# Clones


@pytest.fixture(scope="module")
def preload(tmp_path_factory):
    library = tmp_path_factory.mktemp("clones") / "clones.node"
    source = Path(__file__).parent / "clones.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", library, source], check=True)
    return library


def check_clones(command, preload, count):
    """Two clones print `count` words, all alike where nothing is drawn anew, and all different where it is."""
    for how in ("plain", "drawing"):
        ran = subprocess.run(
            [*map(str, command), how], env={"LD_PRELOAD": str(preload), "CLONES": str(preload), "PATH": os.environ["PATH"]},
            capture_output=True, text=True, timeout=20,
        )  # fmt: skip
        first, second = (line.split() for line in ran.stdout.splitlines())
        assert len(first) == len(second) == count, (ran.stdout, ran.stderr)
        if how == "plain":
            assert first == second, "the clones of this test are none"
        else:
            assert all(one != other for one, other in zip(first, second)), (first, second)


# ---------------------------------------------------------------------------------------------------------------------
# Node.js

NODE_TASK = {
    "app.js": """
const fs = require('fs');
const say = (word) => fs.appendFileSync('said', word + '\\n');
say('init');
awslambda.beforeSnapshot(say, 'before-1');
awslambda.beforeSnapshot(async () => { await new Promise((resolve) => setTimeout(resolve, 5)); say('before-2'); });
awslambda.afterRestore(async () => { await new Promise((resolve) => setTimeout(resolve, 5)); say('after-1'); });
awslambda.afterRestore(say, 'after-2');
exports.handler = async () => { say('invoked'); return Object.getOwnPropertyDescriptor(Math, 'random'); };
""",
    "module.mjs": """
import fs from 'node:fs';
awslambda.afterRestore(() => fs.appendFileSync('said', 'after\\n'));
export const handler = async () => Math.random();
""",
    "bad_before.js": "awslambda.beforeSnapshot(async () => { throw new RangeError('not now'); }); exports.handler = async () => {};",
    "bad_after.js": "awslambda.afterRestore(() => { throw new TypeError('gone'); }); exports.handler = async () => {};",
    "bad_hook.js": "awslambda.afterRestore('no function'); exports.handler = async () => {};",
}


@pytest.fixture(scope="module")
def node_runtime(tmp_path_factory):
    runtime = tmp_path_factory.mktemp("node") / "runtime"
    lay_out_node(runtime)
    return runtime


@pytest.mark.skipif(not NODES, reason="no node on this machine")
@pytest.mark.parametrize("node", NODES, ids=lambda path: "node-" + str(Path(path).parent.parent.name))
class TestNode:
    def test_hooks_run_around_the_restore(self, tmp_path, node_runtime, node):
        ran, said = restored([node_runtime / "bootstrap", node], write(tmp_path, NODE_TASK), "app.handler")
        assert said == ORDER and ran.exit_code is None, ran.stdout
        assert ran.post.json == {"writable": True, "enumerable": False, "configurable": True}

    def test_hooks_of_modules(self, tmp_path, node_runtime, node):
        ran, said = restored([node_runtime / "bootstrap", node], write(tmp_path, NODE_TASK), "module.handler")
        assert said == ["restored", "after"] and 0 <= ran.post.json < 1

    def test_without_snap_start_nothing_of_it_happens(self, tmp_path, node_runtime, node):
        write(tmp_path, NODE_TASK)
        assert run([node_runtime / "bootstrap", node], tmp_path, "app.handler", [invocation()]).post.path.endswith("/response")
        assert (tmp_path / "said").read_text().split() == ["init", "invoked"]

    @pytest.mark.parametrize(
        "handler,path,kind,body,code",
        [
            ("bad_before.handler", "init/error", "Runtime.BeforeSnapshotError", ("RangeError", "not now"), 64),
            ("bad_after.handler", "restore/error", "Runtime.AfterRestoreError", ("TypeError", "gone"), 65),
            ("bad_hook.handler", "init/error", "TypeError", ("TypeError", "a snapshot hook must be a function"), 129),
        ],
    )
    def test_a_failed_hook_is_reported_and_ends_the_process(self, tmp_path, node_runtime, node, handler, path, kind, body, code):
        ran, _ = restored([node_runtime / "bootstrap", node], write(tmp_path, NODE_TASK), handler)
        assert (ran.post.path, ran.post.headers[TYPE], ran.exit_code) == (path, kind, code)
        assert (ran.post.json["errorType"], ran.post.json["errorMessage"]) == body
        assert body[1] in ran.stdout and ran.nexts == 0

    def test_a_runtime_without_its_native_part_takes_no_snapshot(self, tmp_path, node):
        ran, said = restored([RUNTIMES / "nodejs" / "bootstrap", node], write(tmp_path, NODE_TASK), "app.handler")
        assert (ran.post.path, ran.exit_code, said) == ("init/error", 64, ["init"])
        assert "for want of a C compiler" in ran.post.json["errorMessage"]

    def test_clones_draw_numbers_of_their_own(self, preload, node_runtime, node):
        code = """
const crypto = require('crypto'), fs = require('fs');
Math.random(); crypto.randomBytes(8); crypto.randomUUID(); crypto.randomInt(2 ** 40);
const load = () => process.dlopen({ exports: {} }, process.env.CLONES);
const clone = async () => load();
(async () => {
  if (process.argv[1] === 'drawing') await require('%s/snapshot.cjs').completeInit({ restoreNext: clone }, console.error);
  else await clone();
  const drawn = [Math.random(), crypto.randomBytes(8).toString('hex'), crypto.randomUUID(), crypto.randomInt(2 ** 40)];
  fs.writeSync(1, drawn.join(' ') + '\\n');
  load();
})();
"""
        # A thread of V8's would not go along.
        check_clones([node, "--single-threaded", "-e", code % node_runtime, "--"], preload, 4)

    def test_numbers_of_clones_are_spread_evenly(self, node_runtime, node):
        code = """
const { completeInit } = require('%s/snapshot.cjs');
completeInit({ restoreNext: async () => {} }, console.error).then(() => {
  const counts = new Array(16).fill(0);
  for (let n = 0; n < 160000; n++) counts[Math.floor(Math.random() * 16)]++;
  console.log(JSON.stringify(counts));
});
"""
        ran = subprocess.run([node, "-e", code % node_runtime], capture_output=True, text=True, check=True)
        # Ten standard deviations.
        assert all(abs(count - 10000) < 1000 for count in json.loads(ran.stdout))


# ---------------------------------------------------------------------------------------------------------------------
# Ruby

RUBY_TASK = {
    "app.rb": """
require 'snapshot_restore'
srand(1)
def say(word)
  File.open('said', 'a') { |file| file.puts(word) }
end
say('init')
SnapshotRestore.before_snapshot { say('before-1') }
SnapshotRestore.before_snapshot(-> { say('before-2') })
SnapshotRestore.after_restore { say('after-1') }
SnapshotRestore.after_restore { say('after-2') }
def handler(event:, context:)
  say('invoked')
  rand
end
""",
    "bad_before.rb": "require 'snapshot_restore'\nSnapshotRestore.before_snapshot { raise ArgumentError, 'not now' }\ndef handler(event:, context:) = nil\n",
    "bad_after.rb": "require 'snapshot_restore'\nSnapshotRestore.after_restore { exit 3 }\ndef handler(event:, context:) = nil\n",
}


@pytest.mark.skipif(RUBY is None, reason="no ruby on this machine")
class TestRuby:
    COMMAND = [RUBY, RUNTIMES / "ruby" / "bootstrap.rb"]
    ENV = {"RUBYLIB": str(RUNTIMES / "ruby" / "lib")}

    def test_hooks_run_around_the_restore(self, tmp_path):
        ran, said = restored(self.COMMAND, write(tmp_path, RUBY_TASK), "app.handler", self.ENV)
        assert said == ORDER and ran.exit_code is None, ran.stderr
        # The sequence that began with seed 1 does not go on.
        assert ran.post.json != 0.417022004702574

    def test_without_snap_start_nothing_of_it_happens(self, tmp_path):
        write(tmp_path, RUBY_TASK)
        assert run(self.COMMAND, tmp_path, "app.handler", [invocation()], self.ENV).post.json == 0.417022004702574
        assert (tmp_path / "said").read_text().split() == ["init", "invoked"]

    @pytest.mark.parametrize(
        "handler,path,kind,body,code",
        [
            ("bad_before.handler", "init/error", "Runtime.BeforeSnapshotError", ("Init<ArgumentError>", "not now"), 64),
            ("bad_after.handler", "restore/error", "Runtime.AfterRestoreError", ("Restore<SystemExit>", "exit"), 65),
        ],
    )
    def test_a_failed_hook_is_reported_and_ends_the_process(self, tmp_path, handler, path, kind, body, code):
        ran, _ = restored(self.COMMAND, write(tmp_path, RUBY_TASK), handler, self.ENV)
        assert (ran.post.path, ran.post.headers[TYPE], ran.exit_code) == (path, kind, code)
        assert (ran.post.json["errorType"], ran.post.json["errorMessage"]) == body
        assert not any("/runtimes/ruby/" in line for line in ran.post.json["stackTrace"])
        assert body[0] in ran.stdout and ran.nexts == 0

    def test_clones_draw_numbers_of_their_own(self, preload):
        code = """
require '%s/bootstrap'
require 'openssl'
srand(7)
OpenSSL::Random.random_bytes(8)
def clone_now
  # Not `fork`, at which Ruby draws anew.
  2.times { (child = syscall(57)).zero? ? return : Process.wait(child) }
  exit!(0)
end
if ARGV.first == 'drawing'
  runtime = Firelet::Runtime.allocate
  api = Object.new
  api.define_singleton_method(:restore_next) { Object.send(:clone_now) }
  runtime.instance_variable_set(:@api, api)
  runtime.send(:complete_snapshot)
else
  clone_now
end
$stdout.write("#{rand} #{OpenSSL::Random.random_bytes(8).unpack1('H*')}\\n")
$stdout.flush
exit!(0)
"""
        check_clones([RUBY, "-e", code % (RUNTIMES / "ruby"), "--"], preload, 2)


# ---------------------------------------------------------------------------------------------------------------------
# Java

# The library org.crac finds the runtime's classes as this one does.
JAVA_TASK = {
    "org/crac/Like.java": """
package org.crac;
import java.lang.reflect.*;
public class Like {
    public static void register(Runnable before, Runnable after, Object keep) throws Exception {
        String pkg = System.getProperty("org.crac.Core.Compat");
        Class<?> resource = Class.forName(pkg + ".Resource"), context = Class.forName(pkg + ".Context");
        Class.forName(pkg + ".CheckpointException"); Class.forName(pkg + ".RestoreException");
        Object proxy = Proxy.newProxyInstance(Like.class.getClassLoader(), new Class<?>[] {resource}, (self, method, arguments) -> {
            if (method.getName().equals("beforeCheckpoint")) before.run();
            else if (method.getName().equals("afterRestore")) after.run();
            else throw new IllegalStateException(method.getName());
            return null;
        });
        ((java.util.List<Object>) keep).add(proxy);
        context.getMethod("register", resource).invoke(Class.forName(pkg + ".Core").getMethod("getGlobalContext").invoke(null), proxy);
    }
}
""",
    "demo/Hooks.java": """
package demo;
import com.amazonaws.services.lambda.crac.*;
import java.nio.file.*;
import java.util.*;
public class Hooks implements Resource {
    final List<Object> kept = new ArrayList<>();
    static void say(String word) {
        try { Files.writeString(Path.of("said"), word + "\\n", StandardOpenOption.APPEND, StandardOpenOption.CREATE); }
        catch (java.io.IOException e) { throw new RuntimeException(e); }
    }
    public Hooks() throws Exception {
        say("init");
        Core.getGlobalContext().register(this);
        org.crac.Like.register(() -> say("before-2"), () -> say("after-2"), kept);
    }
    public void beforeCheckpoint(Context<? extends Resource> context) { say("before-1"); }
    public void afterRestore(Context<? extends Resource> context) { say("after-1"); }
    public String handle(Object event) { say("invoked"); return UUID.randomUUID().toString(); }
}
""",
    "demo/Bad.java": """
package demo;
import com.amazonaws.services.lambda.crac.*;
import java.util.*;
public class Bad implements Resource {
    private static final List<Object> kept = new ArrayList<>();
    final boolean before;
    Bad(boolean before) throws Exception {
        this.before = before;
        Core.getGlobalContext().register(this);
        org.crac.Like.register(() -> Hooks.say("before-2"), () -> Hooks.say("after-2"), kept);
    }
    public void beforeCheckpoint(Context<? extends Resource> context) { if (before) throw new IllegalStateException("not now"); }
    public void afterRestore(Context<? extends Resource> context) { if (!before) throw new IllegalStateException("gone"); }
    public void handle(Object event) {}
    public static class Before extends Bad { public Before() throws Exception { super(true); } }
    public static class After extends Bad { public After() throws Exception { super(false); } }
}
""",
}


@pytest.fixture(scope="module")
def java(tmp_path_factory):
    if not (JAVAC and JAVA):
        pytest.skip("no JDK on this machine")
    runtime, task = tmp_path_factory.mktemp("runtime"), tmp_path_factory.mktemp("task")
    lay_out_java(runtime, JAVAC)
    write(task, JAVA_TASK)
    path = "%s:%s" % (runtime / "java", runtime / "java-api")
    subprocess.run([JAVAC, "-nowarn", "-cp", path, "-d", task, *sorted(task.rglob("*.java"))], check=True)
    return [runtime / "bootstrap", JAVA], task


class TestJava:
    def test_resources_are_told_around_the_restore(self, java):
        command, task = java
        ran, said = restored(command, task, "demo.Hooks::handle")
        assert said == ORDER and ran.exit_code is None, ran.stdout
        assert len(ran.post.json) == 36

    def test_without_snap_start_nothing_of_it_happens(self, java):
        command, task = java
        (task / "said").write_text("")
        assert run(command, task, "demo.Hooks::handle", [invocation()]).post.path.endswith("/response")
        assert (task / "said").read_text().split() == ["init", "invoked"]

    @pytest.mark.parametrize(
        "handler,path,kind,gathered,why,told",
        [
            ("demo.Bad$Before::handle", "init/error", "Runtime.BeforeCheckpointError", "CheckpointException", "not now", ["before-2"]),
            ("demo.Bad$After::handle", "restore/error", "Runtime.AfterRestoreError", "RestoreException", "gone", ["before-2", "restored", "after-2"]),
        ],
    )  # fmt: skip
    def test_a_failed_resource_is_reported_after_the_others_were_told(self, java, handler, path, kind, gathered, why, told):
        command, task = java
        ran, said = restored(command, task, handler)
        assert said == told
        assert (ran.post.path, ran.post.headers[TYPE], ran.exit_code) == (path, kind, 64)
        assert ran.post.json["errorType"] == "com.amazonaws.services.lambda.crac." + gathered
        assert "Suppressed: java.lang.IllegalStateException: " + why in ran.stdout and ran.nexts == 0
