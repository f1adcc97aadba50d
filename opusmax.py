#!/usr/bin/env python3
"""OpusMax: run this. `opusmax.py --help` says what it can do; the package `gateway` does it."""

import io
import os
import sys


def main() -> int:
    """Run the command line; returns its exit code."""
    os.umask(0o077)  # before anything can make a file: what we write is for its owner alone
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a name shows its code
    try:
        from gateway import cli

        code = cli.main(list(map(readable, sys.argv[1:])), os.environ, sys.stdout, sys.stderr)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 1
    except BrokenPipeError:  # who read our output has gone; Python would complain of that at its exit
        silence = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(silence, stream.fileno())
        return 1
    return code


def readable(argument: str) -> str:
    """What was typed. In a locale that knows no such letters, Python keeps their bytes as lone surrogates."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return os.fsencode(argument).decode(errors="replace")
    return argument


if __name__ == "__main__":
    sys.exit(main())
