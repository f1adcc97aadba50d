#!/usr/bin/env python3
"""OpusMax: run this. `opusmax.py --help` says what it can do; the package `gateway` does it."""

import os
import sys


def main() -> int:
    """Run the command line; returns its exit code."""
    os.umask(0o077)  # before anything can make a file: what we write is for its owner alone
    from gateway import cli

    code = cli.main(sys.argv[1:], os.environ, sys.stdout, sys.stderr)
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # who read our output has gone; Python would complain of that at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


if __name__ == "__main__":
    sys.exit(main())
