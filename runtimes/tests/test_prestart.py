"""Runtimes that were started before it was known for whom: their functions must not be able to tell.

Those of Python are in test_python.py.
"""

import json
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from runtime_harness import RUNTIMES, invocation, lay_out_java, mask, run, write

MODULES = Path(os.environ.get("FIRELET_TEST_NODE_MODULES", "/nonexistent"))
NODES = [path for path in (shutil.which("node"), *sorted(MODULES.glob("node-*/bin/node"))) if path]
BASE = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "256", "LEFT_BEHIND": "1"}
OWN = {"TZ": "EST5", "AWS_LAMBDA_LOG_FORMAT": "JSON", "MINE": "grüß = 𝄞\n2", "EMPTY": ""}


def both(command, task, handler, env, log_fd=True, base=BASE, **options):
    """What a process of its own answers and logs, and what one that waited does."""
    runs = [run(command, task, handler, [invocation()], env, log_fd, prestart=prestart, **options) for prestart in (None, base)]
    return [(ran.post.json, ran.stdout, ran.stderr, [frame.message for frame in ran.frames]) for ran in runs]


def unwanted(command, env=BASE):
    """The exit code of a process that waited for nothing."""
    ours, theirs = socket.socketpair()
    env = {**env, "FIRELET_PRESTART_FD": str(theirs.fileno())}
    process = subprocess.Popen([*map(str, command)], cwd="/", env=env, pass_fds=(theirs.fileno(),))
    theirs.close()
    ours.settimeout(30)
    assert len(ours.recv(1)) == 1
    ours.close()
    return process.wait(timeout=30)


def node(binary):
    return [RUNTIMES / "nodejs" / "bootstrap", binary]


NODE_TASK = {"package.json": "{}", "one.js": "exports.one = 1;", "app.js": r"""
const http = require('http');
const Module = require('module');
const { one } = require('./one');
const atStart = look();
function look() {
  const volatile = ['AWS_LAMBDA_RUNTIME_API', '_LAMBDA_TELEMETRY_LOG_FD'];
  const descriptors = (object) => Object.entries(Object.getOwnPropertyDescriptors(object))
    .map(([name, { get, enumerable, writable }]) => [name, get !== undefined, enumerable, writable]);
  return {
    env: Object.fromEntries(Object.entries(process.env).filter(([name]) => !volatile.includes(name)).sort()),
    cwd: process.cwd(), argv: process.argv, execArgv: process.execArgv, title: process.title,
    zone: [Intl.DateTimeFormat().resolvedOptions().timeZone, new Date(0).toString(), Intl.NumberFormat().resolvedOptions().locale],
    heap: require('v8').getHeapStatistics().heap_size_limit,
    cache: Object.keys(require.cache), children: Object.values(require.cache).map((m) => [m.id, m.children.map((c) => c.id)]),
    found: Object.values(Module._pathCache), paths: module.paths, global: Module.globalPaths, main: require.main.filename,
    globals: descriptors(globalThis), symbols: Object.getOwnPropertySymbols(globalThis).map(String), ofProcess: Object.keys(process),
    listeners: process.eventNames().map((name) => [String(name), process.listenerCount(name)]),
    resources: process.getActiveResourcesInfo?.().filter((name) => name.startsWith('TCP') || name === 'Timeout').length,
    hooks: require('async_hooks').executionAsyncResource() !== undefined, agent: Object.keys(http.globalAgent.sockets),
  };
}
exports.look = async () => { console.log('said', one); console.error(new TypeError('bad').message); return [atStart, look()]; };
exports.chance = async () => [Math.random(), require('crypto').randomUUID(), require('crypto').randomBytes(8).toString('hex')];
"""}


@pytest.mark.skipif(not NODES, reason="no node on this machine")
@pytest.mark.parametrize("binary", NODES, ids=lambda path: "node-" + str(Path(path).parent.parent.name))
class TestNode:
    @pytest.mark.parametrize("log_fd", [False, True])
    def test_one_that_waited_is_like_one_that_did_not(self, tmp_path, binary, log_fd):
        plain, waited = both(node(binary), write(tmp_path, NODE_TASK), "app.look", OWN, log_fd)
        assert waited[0] == plain[0]
        assert mask(json.dumps(waited[1:])) == mask(json.dumps(plain[1:]))
        seen = plain[0][0]
        assert seen["cwd"] == seen["env"]["PWD"] == str(tmp_path) and "LEFT_BEHIND" not in seen["env"]
        assert seen["env"]["MINE"] == OWN["MINE"] and "GMT-0500" in seen["zone"][1]

    def test_modules_of_the_other_kind_are_loaded_too(self, tmp_path, binary):
        write(tmp_path, {"app.mjs": "import path from 'node:path';\nexport const handler = async () => [path.join('a', 'b'), import.meta.url];"})
        plain, waited = both(node(binary), tmp_path, "app.handler", {})
        assert waited == plain and plain[0][0] == "a/b"

    def test_each_draws_numbers_of_its_own(self, tmp_path, binary):
        write(tmp_path, NODE_TASK)
        drawn = [run(node(binary), tmp_path, "app.chance", [invocation()], prestart=BASE).post.json for _ in range(3)]
        for of_one_kind in zip(*drawn):
            assert len(set(of_one_kind)) == 3

    def test_what_the_interpreter_carries_compiled_is_used_and_its_flags_hold(self, tmp_path, binary):
        looking = write(tmp_path, {"bin/node": '#!/bin/sh\nexec "%s" --expose-internals --no-warnings "$@"\n' % binary}) / "bin/node"
        looking.chmod(0o755)
        task = write(tmp_path / "task", {"app.js": r"""
const { internalBinding } = require('internal/test/binding');
const { compiledWithCache, compiledWithoutCache } = internalBinding('builtins').getCacheUsage();
const builtins = { cached: [...compiledWithCache], anew: [...compiledWithoutCache] };
const { Worker } = require('worker_threads');
const limit = "require('v8').getHeapStatistics().heap_size_limit";
exports.look = async () => {
  const thread = new Worker(`require('worker_threads').parentPort.postMessage(${limit})`, { eval: true });
  const ofThread = await new Promise((resolve, reject) => thread.once('message', resolve).once('error', reject));
  return { ...builtins, limits: [eval(limit), ofThread], gc: require('vm').runInNewContext('typeof gc') };
};
"""})
        for seen in (answer[0] for answer in both(node(looking), task, "app.look", {})):
            assert "net" in seen["cached"] and "net" not in seen["anew"], seen
            assert len(seen["anew"]) < 8, seen["anew"]
            assert seen["gc"] == "function"
            # As many as the flags say, and not as many as the machine would allow for.
            assert seen["limits"][0] == seen["limits"][1] < 300 << 20

    def test_one_that_nobody_wanted_ends(self, binary):
        assert unwanted(node(binary)) == 0


RUBY = shutil.which("ruby")
RUBY_TASK = {"part.rb": "PART = 1\n", "lib/deep.rb": "DEEP = 2\n", "app.rb": r"""
require 'logger'
require 'part'
require_relative 'lib/deep'
require 'own_gem'
def look_now
  volatile = %w[AWS_LAMBDA_RUNTIME_API _LAMBDA_TELEMETRY_LOG_FD]
  { env: ENV.to_h.except(*volatile).sort, cwd: Dir.pwd, zone: Time.at(0).to_s, path: $LOAD_PATH, features: $LOADED_FEATURES,
    globals: global_variables.sort, constants: Object.constants.map(&:to_s).sort, argv: ARGV, name: $0,
    encodings: [Encoding.default_external.name, Encoding.default_internal&.name], threads: Thread.list.size,
    gems: [Gem.path, Gem.loaded_specs.keys.sort, Gem::Specification.map(&:full_name).sort], options: RbConfig.ruby,
    files: ObjectSpace.each_object(IO).reject(&:closed?).map { |io| io.class.name }.sort }
end
AT_START = look_now
def look(event:, context:)
  puts "said #{PART} #{DEEP} #{OWN}"
  Logger.new($stdout).info('logged')
  [AT_START, look_now]
end
def chance(event:, context:)
  require 'securerandom'
  [rand, Random.new.seed, 'text'.hash, SecureRandom.uuid]
end
""",
    "gems/specifications/own_gem-1.0.0.gemspec": "Gem::Specification.new { |s| s.name = 'own_gem'; s.version = '1.0.0'; s.summary = 's'; s.authors = ['a']; s.require_paths = ['lib'] }\n",
    "gems/gems/own_gem-1.0.0/lib/own_gem.rb": "OWN = 3\n",
}


@pytest.mark.skipif(RUBY is None, reason="no ruby on this machine")
class TestRuby:
    COMMAND = [RUBY, RUNTIMES / "ruby" / "bootstrap.rb"]

    def variables(self, task):
        return {"RUBYLIB": "%s:/opt/ruby/lib" % task, "GEM_PATH": "%s/gems" % task}

    @pytest.mark.parametrize("log_fd", [False, True])
    def test_one_that_waited_is_like_one_that_did_not(self, tmp_path, log_fd):
        own = self.variables(tmp_path)
        plain, waited = both(self.COMMAND, write(tmp_path, RUBY_TASK), "app.look", {**OWN, **own}, log_fd, {**BASE, **own})
        assert waited[0] == plain[0]
        def steady(said):
            return re.sub(r"#\d+|\d{4}-\d\d-\d\dT[\d:.]+Z?", "", json.dumps(said))

        assert steady(waited[1:]) == steady(plain[1:])
        seen = plain[0][0]
        assert seen["cwd"] == str(tmp_path) and "-0500" in seen["zone"]
        assert "own_gem-1.0.0" in seen["gems"][2] and ["MINE", OWN["MINE"]] in seen["env"]

    def test_each_draws_numbers_of_its_own(self, tmp_path):
        own = self.variables(tmp_path)
        write(tmp_path, RUBY_TASK)
        drawn = [run(self.COMMAND, tmp_path, "app.chance", [invocation()], own, prestart={**BASE, **own}).post.json for _ in range(3)]
        for of_one_kind in zip(*drawn):
            assert len(set(of_one_kind)) == 3

    def test_one_that_nobody_wanted_ends(self):
        assert unwanted(self.COMMAND) == 0


JAVAC = shutil.which("javac")
JAVAS = sorted({str(Path(path).resolve()) for path in (shutil.which("java"), *map(str, Path("/usr/lib/jvm").glob("*/bin/java"))) if path})
JAVA_TASK = {"demo/Look.java": r"""
package demo;
import java.io.*;
import java.util.*;
public class Look {
    static final Map<String, Object> AT_START = look();
    static Map<String, Object> look() {
        Map<String, String> env = new TreeMap<>(System.getenv());
        Map<String, String> child = new TreeMap<>(new ProcessBuilder().environment());
        for (String name : List.of("AWS_LAMBDA_RUNTIME_API", "_LAMBDA_TELEMETRY_LOG_FD")) { env.remove(name); child.remove(name); }
        Map<String, String> properties = new TreeMap<>();
        for (String name : System.getProperties().stringPropertyNames()) properties.put(name, System.getProperty(name));
        properties.keySet().removeAll(List.of("com.amazonaws.xray.traceHeader"));
        Map<String, Object> seen = new TreeMap<>();
        seen.put("env", env); seen.put("child", child.equals(env)); seen.put("one", String.valueOf(System.getenv("MINE")));
        seen.put("zone", TimeZone.getDefault().getID() + " " + java.time.ZonedDateTime.ofInstant(java.time.Instant.EPOCH, java.time.ZoneId.systemDefault()));
        seen.put("properties", properties); seen.put("locale", Locale.getDefault().toString());
        seen.put("file", new File("here.txt").getAbsolutePath()); seen.put("reads", read());
        seen.put("path", java.nio.file.Path.of("x").toAbsolutePath().toString());
        seen.put("loader", Look.class.getClassLoader().getClass().getName() + Thread.currentThread().getContextClassLoader().equals(Look.class.getClassLoader()));
        seen.put("resource", Look.class.getResource("/here.txt") != null);
        seen.put("arguments", Arrays.toString(ProcessHandle.current().info().arguments().orElse(new String[0])));
        seen.put("memory", Runtime.getRuntime().maxMemory());
        List<String> threads = new ArrayList<>();
        for (Thread thread : Thread.getAllStackTraces().keySet()) threads.add(thread.getName());
        Collections.sort(threads);
        seen.put("threads", threads);
        return seen;
    }
    static String read() {
        try (BufferedReader reader = new BufferedReader(new FileReader("here.txt"))) { return reader.readLine(); }
        catch (IOException e) { return e.toString(); }
    }
    public Object look(Object event) { System.out.println("said " + new Date(0)); System.err.println("err"); return List.of(AT_START, look()); }
    public Object chance(Object event) { return List.of(Math.random(), UUID.randomUUID().toString(), new Random().nextLong()); }
}
""", "here.txt": "in place\n"}


@pytest.fixture(scope="module")
def java(tmp_path_factory):
    runtime, task = tmp_path_factory.mktemp("runtime"), tmp_path_factory.mktemp("task")
    lay_out_java(runtime, JAVAC)
    write(task, JAVA_TASK)
    subprocess.run([JAVAC, "--release", "11", "-d", task, task / "demo/Look.java"], check=True)
    return runtime / "bootstrap", task


@pytest.mark.skipif(not (JAVAC and JAVAS), reason="no JDK on this machine")
@pytest.mark.parametrize("binary", JAVAS, ids=lambda path: Path(path).parent.parent.name)
class TestJava:
    @pytest.mark.parametrize("log_fd", [False, True])
    def test_one_that_waited_is_like_one_that_did_not(self, java, binary, log_fd):
        bootstrap, task = java
        plain, waited = both([bootstrap, binary], task, "demo.Look::look", OWN, log_fd, start_in=task)
        assert waited == plain
        seen = plain[0][0]
        assert seen["env"]["PWD"] == str(task) and seen["child"] and seen["one"] == OWN["MINE"] and seen["reads"] == "in place"
        assert "-05:00" in seen["zone"] and seen["file"] == str(task / "here.txt")

    def test_each_draws_numbers_of_its_own(self, java, binary):
        bootstrap, task = java
        drawn = [run([bootstrap, binary], task, "demo.Look::chance", [invocation()], prestart=BASE, start_in=task).post.json for _ in range(3)]
        for of_one_kind in zip(*drawn):
            assert len(set(of_one_kind)) == 3

    def test_one_that_nobody_wanted_ends(self, java, binary):
        assert unwanted([java[0], binary]) == 0
