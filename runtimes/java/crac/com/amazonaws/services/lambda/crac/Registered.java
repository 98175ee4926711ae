package com.amazonaws.services.lambda.crac;

import java.lang.ref.WeakReference;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;

/** The resources of a function. Each is told though others fail. */
final class Registered extends Context<Resource> {
    /** In the order of registration. */
    private final List<WeakReference<Resource>> resources = new ArrayList<>();

    @Override
    public synchronized void register(Resource resource) {
        resources.removeIf(known -> known.get() == null);
        resources.add(new WeakReference<>(resource));
    }

    @Override
    public synchronized void beforeCheckpoint(Context<? extends Resource> context) throws CheckpointException {
        List<Resource> all = alive();
        Collections.reverse(all);
        CheckpointException failed = new CheckpointException();
        for (Resource resource : all) {
            try {
                resource.beforeCheckpoint(this);
            } catch (Exception e) {
                add(e, e instanceof CheckpointException, failed);
            }
        }
        if (failed.getSuppressed().length > 0) throw failed;
    }

    @Override
    public synchronized void afterRestore(Context<? extends Resource> context) throws RestoreException {
        RestoreException failed = new RestoreException();
        for (Resource resource : alive()) {
            try {
                resource.afterRestore(this);
            } catch (Exception e) {
                add(e, e instanceof RestoreException, failed);
            }
        }
        if (failed.getSuppressed().length > 0) throw failed;
    }

    /** A context that was registered itself only says whose exceptions it gathered. */
    private static void add(Exception thrown, boolean gathered, Exception to) {
        Throwable[] inner = thrown.getSuppressed();
        if (!gathered || inner.length == 0) inner = new Throwable[] {thrown};
        for (Throwable one : inner) to.addSuppressed(one);
    }

    private List<Resource> alive() {
        List<Resource> alive = new ArrayList<>();
        for (WeakReference<Resource> known : resources) {
            Resource resource = known.get();
            if (resource != null) alive.add(resource);
        }
        return alive;
    }
}
