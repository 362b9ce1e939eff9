"""Opening databases for reading."""

import weakref
from pathlib import Path

import lmdb

from utils.errors import UserError

# LMDB forbids to open a database twice in one process, so its readers share one environment.
_environments: weakref.WeakValueDictionary[Path, lmdb.Environment] = weakref.WeakValueDictionary()


def open_database(path: Path) -> lmdb.Environment:
    """Open a complete database for reading; UserError if there is none at `path`."""
    # Published configs name the parent of the training split.
    if not (path / "data.mdb").is_file() and (path / "train" / "data.mdb").is_file():
        path = path / "train"
    key = path.resolve()
    environment = _environments.get(key)
    if environment is None:
        if not (path / "data.mdb").is_file():
            raise UserError(
                f"{path}: no database there; the scripts in preprocess_scripts/ make it"
            )
        try:
            # No lock file: folders may be read-only, and nothing writes to a complete database.
            environment = lmdb.open(str(path), readonly=True, lock=False, readahead=False)
        except lmdb.Error as error:
            raise UserError(f"{path}: not a readable database ({error})") from error
        _environments[key] = environment
    return environment
