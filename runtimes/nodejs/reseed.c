/* What Node.js has no words for: seeding OpenSSL's generators again (snapshot.cjs). A clone of a snapshot would go on with
 * the state that all others have, and draw the same.
 *
 * A Node-API addon whose loading is all that it does. The prototype stands here so that no headers are needed; the
 * function is the interpreter's, or of the libcrypto that it is linked with. */
#include <stdlib.h>
#include <sys/random.h>

extern void RAND_add(const void *bytes, int count, double entropy);

__attribute__((visibility("default"))) void *napi_register_module_v1(void *env, void *exports) {
    unsigned char bytes[64];
    (void)env;
    /* Up to 256 bytes come whole. Without them nothing may go on. */
    if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes) abort();
    RAND_add(bytes, sizeof bytes, sizeof bytes);
    return exports;
}
