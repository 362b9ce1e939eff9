"""A few seconds of fuzz_readers.py with fixed seeds; `make soak` runs it longer, with new seeds."""

from fuzz_readers import fuzz


def test_damaged_files_are_refused_with_a_users_error(tmp_path, capsys):
    tried, faults = fuzz([], seconds=8, first_seed=0, folder=tmp_path)
    assert tried > 15
    assert faults == 0, capsys.readouterr().out
