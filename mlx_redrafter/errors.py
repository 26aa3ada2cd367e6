"""The exception that means: the user, not the program, has something to change."""


class RedrafterError(ValueError):
    """Bad input, told in one sentence that says what was wrong and what to do.

    Command lines print it and exit with code 2; every other exception is a bug and keeps its
    traceback.
    """


class SharedError(RedrafterError):
    """An error that every process of a distributed run raises alike; rank 0 tells it for all."""
