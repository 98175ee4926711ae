// Descriptors that the platform gives by their numbers.
package firelet;

import java.io.FileDescriptor;
import java.lang.reflect.Constructor;

final class Descriptors {
    private Descriptors() {}

    /** A pipe of another user cannot be opened again through /proc, so the number itself is taken. */
    static FileDescriptor of(int number) throws ReflectiveOperationException {
        Constructor<FileDescriptor> byNumber = FileDescriptor.class.getDeclaredConstructor(int.class);
        byNumber.setAccessible(true);
        return byNumber.newInstance(number);
    }
}
