/* Lets two forks of a process stand for two clones of its snapshot (test_snapstart.py). Preloaded: a process keeps its number
 * when it is forked, by which OpenSSL would know, and V8's memory goes along. Loaded by Node.js: forks. */
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

static pid_t number;

__attribute__((constructor)) static void remember(void) {
    if (number == 0) number = (pid_t)syscall(SYS_getpid);
}

pid_t getpid(void) { return number; }

int madvise(void *start, size_t size, int advice) {
    const int dont_fork = 10;
    return advice == dont_fork ? 0 : (int)syscall(SYS_madvise, start, size, advice);
}

/* Returns in two forks, one after the other; the process that was forked ends when both have. The second time, it ends the
 * fork, which would otherwise wait for threads that it does not have. */
void *napi_register_module_v1(void *env, void *exports) {
    static int forked;
    (void)env;
    if (forked++) _exit(0);
    for (int clone = 0; clone < 2; clone++) {
        pid_t child = (pid_t)syscall(SYS_fork);
        int status = 0;
        if (child == 0) return exports;
        waitpid(child, &status, 0);
        if (status != 0) _exit(1);
    }
    _exit(0);
}
