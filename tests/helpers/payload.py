"""Code hidden in a pickle, for tests that must not run it."""

import os
from pathlib import Path


class Payload:
    """Object that creates the folder `target` when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        """Make pickle store a call of os.mkdir."""
        return os.mkdir, (str(self.target),)
