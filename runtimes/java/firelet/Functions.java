// Where a function's classes come from: a loader of their own below the runtime's, as on Lambda.
package firelet;

import java.io.File;
import java.net.MalformedURLException;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

final class Functions {
    private Functions() {}

    /** The package, its libraries, those of the layers. The interfaces of aws-lambda-java-core come last, so a function's
     * own copy wins. */
    static ClassLoader loader(Path runtime) throws MalformedURLException {
        String task = System.getenv().getOrDefault("LAMBDA_TASK_ROOT", "/var/task");
        List<URL> urls = new ArrayList<>();
        urls.add(directory(task));
        jars(new File(task, "lib"), urls);
        jars(new File("/opt/java/lib"), urls);
        urls.add(directory(runtime.resolve("java-api").toString()));
        return below(urls);
    }

    /** A loader below the runtime's. */
    static URLClassLoader below(List<URL> urls) {
        return new URLClassLoader(urls.toArray(new URL[0]), Functions.class.getClassLoader());
    }

    /** With the slash at the end that tells a directory from an archive, whether or not it is there. */
    static URL directory(String path) throws MalformedURLException {
        return new URL("file", "", path.endsWith("/") ? path : path + "/");
    }

    private static void jars(File directory, List<URL> urls) throws MalformedURLException {
        File[] files = directory.listFiles((parent, name) -> name.toLowerCase(java.util.Locale.ROOT).endsWith(".jar"));
        if (files == null) return;
        Arrays.sort(files);
        for (File file : files) urls.add(file.toURI().toURL());
    }
}
