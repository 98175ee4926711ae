// The end of an initialization that is kept as a snapshot: tells the function's CRaC resources, and waits for the restore.
//
// The process stands in `restore/next` while the snapshot is taken; each clone returns from there on its own. What is drawn
// from the kernel afterwards differs (SecureRandom, UUID.randomUUID); Math.random and ThreadLocalRandom go on as they
// were, as on Lambda.
package firelet;

import com.amazonaws.services.lambda.crac.Core;
import java.util.HashSet;
import java.util.Map;

final class SnapStart {
    private SnapStart() {}

    static boolean isWanted() {
        return "snap-start".equals(System.getenv("AWS_LAMBDA_INITIALIZATION_TYPE"));
    }

    /** Returns in a restored process whose resources all went along; any other ends. */
    static void completeInit(Api api, Logs logs) throws Exception {
        try {
            Core.getGlobalContext().beforeCheckpoint(null);
            System.out.flush();
            // What is no longer used need not be kept.
            System.gc();
            api.restoreNext();
        } catch (Throwable thrown) {
            log(thrown, logs);
            api.failInit(Bootstrap.report(thrown), "Runtime.BeforeCheckpointError");
            System.exit(64);
        }
        try {
            Core.getGlobalContext().afterRestore(null);
            System.out.flush();
        } catch (Throwable thrown) {
            log(thrown, logs);
            api.failRestore(Bootstrap.report(thrown), "Runtime.AfterRestoreError");
            System.exit(64);
        }
    }

    private static void log(Throwable thrown, Logs logs) {
        Logs.trim(thrown, new HashSet<>());
        logs.error(Fault.of(thrown, false), Map.of());
    }
}
