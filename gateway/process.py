"""What the operating system may know of this process: nothing on disk, nothing for other users."""

import ctypes
import os
import resource

_PR_SET_DUMPABLE = 4


def harden() -> None:
    """No core dumps, no reading of the memory by other processes of the same user, files for the owner only."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def raise_file_limit() -> None:
    """As many open files as the system lets us have: a stream needs two."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
