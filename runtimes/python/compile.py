"""Compiles the modules below a directory, for the function that they belong to, and writes what becomes of them.

Run as `python -I -S -c THIS DIRECTORY`, in a sandbox of the function's runtime: the modules are hostile. Standard output
is a row of records: the length of a path and that of a content (four bytes each, big-endian), the path below the
directory, the content. What cannot be compiled is left out, and so is what warns: its warnings belong into the function's
log.
"""

import importlib.util
import os
import struct
import sys
import warnings
from importlib import _bootstrap_external as external

LARGEST = 4 << 20


def compiled(path, size, mtime):
    with open(path, "rb") as file:
        source = file.read()
    code = external.SourceFileLoader("<py_compile>", path).source_to_code(source, path)
    if sys.version_info < (3, 7):
        return external._code_to_bytecode(code, int(mtime), size)
    # Nothing has to be looked at again: the modules cannot change.
    return external._code_to_hash_pyc(code, importlib.util.source_hash(source), False)


def main(top):
    warnings.simplefilter("error")
    out = sys.stdout.buffer
    for folder, folders, names in os.walk(top):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            target = importlib.util.cache_from_source(path) if name.endswith(".py") else None
            if target is None or os.path.lexists(target) or os.path.islink(path):
                continue
            try:
                found = os.stat(path)
                if found.st_size > LARGEST:
                    continue
                content = compiled(path, found.st_size, found.st_mtime)
                relative = os.path.relpath(target, top).encode("utf-8")
            except Exception:
                continue
            out.write(struct.pack(">II", len(relative), len(content)) + relative + content)
    out.flush()


main(sys.argv[1])
