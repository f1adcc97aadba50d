"""Slow hashing of secrets: the only user of argon2.

The parameters are OWASP's smallest for argon2id. A secret carries 256 random bits, so nobody guesses it however
fast the hash is; the slowness is for the day on which the random numbers turn out to be worse than they should be.
"""

import os
import threading

import argon2

MEMORY_KIBIBYTES = 19 * 1024
LOWEST_PRIORITY = 19
"""Linux counts the niceness of each thread by itself."""
HASHER = argon2.PasswordHasher(time_cost=2, memory_cost=MEMORY_KIBIBYTES, parallelism=1)


def hash_secret(secret: str, hasher: argon2.PasswordHasher = HASHER) -> str:
    """The hash to keep of the secret part of an API key. Takes some 30 ms."""
    return hasher.hash(secret)


def verify_secret(hashed: str, secret: str) -> bool:
    """Whether `hashed` was made from `secret`; anything odd about either is a no. Takes some 30 ms.

    The parameters are those that `hashed` names.
    """
    try:
        return HASHER.verify(hashed, secret)
    except (argon2.exceptions.Argon2Error, ValueError):
        # InvalidHashError is a ValueError and no Argon2Error; so is the UnicodeEncodeError of odd text.
        return False


def step_back() -> None:
    """Let the calling thread run only where nobody else wants to: a flood of wrong keys then takes the time that is
    left over, and not that of running answers."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
