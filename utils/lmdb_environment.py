"""Opening databases for reading, and finding out that one is cut short."""

import weakref
from pathlib import Path

import lmdb

from utils.errors import UserError
from utils.locks import writer_of

# LMDB forbids to open a database twice in one process, so its readers share one environment.
_environments: weakref.WeakValueDictionary[Path, lmdb.Environment] = weakref.WeakValueDictionary()


def open_database(path: Path) -> lmdb.Environment:
    """Open a complete database for reading.

    Raises a UserError if there is none at `path`, if it is damaged, or if it is being written.
    """
    # Published configs name the parent of the training split.
    if not (path / "data.mdb").is_file() and (path / "train" / "data.mdb").is_file():
        path = path / "train"
    key = path.resolve()
    environment = _environments.get(key)
    if environment is None:
        if writer := writer_of(path):
            raise UserError(
                f"{path}: incomplete database, being written by {writer}; wait until it is complete"
            )
        if not (path / "data.mdb").is_file():
            raise UserError(
                f"{path}: no database there; the scripts in preprocess_scripts/ make it"
            )
        try:
            # No lock file: folders may be read-only, and nothing writes to a complete database.
            environment = lmdb.open(str(path), readonly=True, lock=False, readahead=False)
        except lmdb.Error as error:
            raise UserError(f"{path}: not a readable database ({error})") from error
        check_whole(path, environment)
        _environments[key] = environment
    return environment


def check_whole(path: Path, environment: lmdb.Environment) -> None:
    """Raise a UserError, and close, if the data file is shorter than its pages.

    It is mapped into memory, so that touching what is missing would end the process (SIGBUS).
    """
    expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    size = (path / "data.mdb").stat().st_size
    if size < expected:
        environment.close()
        raise UserError(
            f"{path}: data.mdb is truncated, {size} of {expected} bytes are there; copy it again, "
            "or delete the database and make it again"
        )
