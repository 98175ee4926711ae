/* What Java has no words for: replacing the environment and the working directory of a process (firelet.Prestart). */
#include <jni.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* `block` holds `NAME=VALUE` entries, each with a zero byte behind it; `directory` ends with one. The variable `kept` stays
 * as it is. Called once, before anything of the function's runs; the entries are the environment from then on. */
JNIEXPORT jboolean JNICALL Java_firelet_Prestart_take(JNIEnv *env, jclass type, jbyteArray block, jbyteArray directory,
                                                      jbyteArray kept) {
    jsize size = (*env)->GetArrayLength(env, block);
    char *entries = malloc((size_t)size + 1);
    jbyte *path = (*env)->GetByteArrayElements(env, directory, NULL);
    jbyte *name = (*env)->GetByteArrayElements(env, kept, NULL);
    (void)type;
    if (entries == NULL || path == NULL || name == NULL) return JNI_FALSE;
    (*env)->GetByteArrayRegion(env, block, 0, size, (jbyte *)entries);
    const char *found = getenv((const char *)name);
    char *value = found == NULL ? NULL : strdup(found);
    if (clearenv() != 0) return JNI_FALSE;
    if (value != NULL && setenv((const char *)name, value, 1) != 0) return JNI_FALSE;
    free(value);
    for (char *entry = entries; entry < entries + size; entry += strlen(entry) + 1) {
        if (putenv(entry) != 0) return JNI_FALSE;
    }
    tzset();
    jboolean done = chdir((const char *)path) == 0 ? JNI_TRUE : JNI_FALSE;
    (*env)->ReleaseByteArrayElements(env, directory, path, JNI_ABORT);
    (*env)->ReleaseByteArrayElements(env, kept, name, JNI_ABORT);
    return done;
}
