"""The comparisons with the published code, and the page of them."""

from pathlib import Path

import numpy as np
import pytest
from parity import section_lines, table
from parity_checks import Golden, compared, noise_rows, vae_rows


def test_deviations_are_the_largest_ones_and_decide():
    row = compared("x", [1.0, 2.0, 1e-9], [1.0, 2.0002, 0.0])
    assert row.absolute == pytest.approx(2e-4)
    assert row.relative == pytest.approx(1e-4, rel=1e-3)
    assert row.passes and not compared("x", [1.0, 2.001], [1.0, 2.0]).passes
    assert not compared("x", [1.0, 2.0 + 1e-9], [1.0, 2.0], exact=True).passes
    assert "**no**" in "".join(table([compared("x", np.ones(3), np.zeros(3))]))


def test_values_of_another_shape_are_not_compared():
    with pytest.raises(ValueError, match="shape"):
        compared("x", np.ones(3), np.ones((3, 1)))


def test_references_are_met_and_missing_ones_are_named(golden, tmp_path):
    found = Golden((tmp_path, golden))
    rows = list(noise_rows(found))
    assert len(rows) == 3 and all(row.passes for row in rows) and not found.missing
    nothing = Golden((Path("nowhere"),))
    assert list(noise_rows(nothing)) == list(vae_rows(nothing)) == []
    assert "ldm_vae_tiny.pth" in nothing.missing
    lines, failures = section_lines(nothing, "Noise of each seed")
    assert lines[-1] == "Not compared: `per_seed_noise.safetensors` was not found."
    assert failures == 0


def test_files_of_one_comparison_may_lie_in_two_folders(golden, tmp_path):
    (tmp_path / "larger").write_bytes(b"")
    found = Golden((golden, tmp_path)).find("larger", "center_crop.npz")
    assert found == (tmp_path / "larger", golden / "center_crop.npz")
