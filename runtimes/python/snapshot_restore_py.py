"""Hooks around a snapshot, under the names of the library of this name that Lambda's Python runtimes contain.

A function registers callables while it initializes; they do nothing unless the function is published with SnapStart. A
copy that the function brings along is used in place of this one.
"""

__all__ = ["register_before_snapshot", "register_after_restore"]

_before_snapshot = []
_after_restore = []


def register_before_snapshot(func, *args, **kwargs):
    """Has `func` called before the snapshot, the last registered first. Also a decorator."""
    _before_snapshot.append((func, args, kwargs))
    return func


def register_after_restore(func, *args, **kwargs):
    """Has `func` called after each restore, in the order of registration. Also a decorator."""
    _after_restore.append((func, args, kwargs))
    return func


def get_before_snapshot():
    """What is called before the snapshot: (callable, arguments, keyword arguments), as registered."""
    return _before_snapshot


def get_after_restore():
    """What is called after a restore: (callable, arguments, keyword arguments), as registered."""
    return _after_restore
