"""The comparison of an audit with what trained networks show."""

import json
import sys

import numpy as np
import pytest

from demo.make_faces import ATTRIBUTES
from research.audit import check
from research.audit.faces import sentences


def test_each_value_but_none_has_one_sentence_of_its_own():
    stated = sentences()
    values = [(name, v) for name, some in ATTRIBUTES.items() for v in some if v != "none"]
    assert list(stated.values()) == values
    assert stated["a person with long straight hair"] == ("hair_style", "long straight")
    assert stated["a person with an afro"] == ("hair_style", "afro")


def test_equal_ranks_give_one_and_noise_an_interval_around_zero():
    x = np.arange(40.0)
    assert check.rank_correlation(x, x**3) == pytest.approx((1, 1, 1))
    rho, low, high = check.rank_correlation(x, np.random.default_rng(0).normal(size=40))
    assert low < 0 < high and low < rho < high


def run_check(tmp_path, monkeypatch, words: list[dict], shown: dict, *flags: str) -> None:
    (tmp_path / "audit.json").write_text(json.dumps({"texts": {"given": words}}))
    (tmp_path / "shown.json").write_text(json.dumps(shown))
    files = [str(tmp_path / name) for name in ("audit.json", "shown.json")]
    monkeypatch.setattr(sys, "argv", ["check.py", *files, *flags])
    check.main()


@pytest.mark.parametrize("of_attributes", [False, True])
def test_a_figure_that_ranks_as_the_networks_do_is_found(
    tmp_path, monkeypatch, capsys, of_attributes
):
    stated, order = sentences(), list(ATTRIBUTES)
    rank = {text: order.index(name) for text, (name, _) in stated.items()}
    keys = dict.fromkeys(check.FIGURES, 0.5)
    words = [{"text": text, **keys, "visible": float(rank[text])} for text in stated]
    shown = {text: 10.0 * rank[text] for text in stated}
    flags = []
    if of_attributes:
        metrics = {"shown": {name: 7.0 * i for i, name in enumerate(order)}}
        shown, flags = {"runs": [{"recipe": "a", "metrics": metrics}] * 2}, ["--recipe", "a"]
    monkeypatch.setattr(check, "FIGURES", ("visible",))
    run_check(tmp_path, monkeypatch, words, shown, *flags)
    line = capsys.readouterr().out.splitlines()[-1].split()
    assert line[:3] == ["visible", str(12 if of_attributes else 63), "1.00"]


def test_a_figure_that_most_words_lack_has_no_correlation(tmp_path, monkeypatch, capsys):
    words = [{"text": str(i), **dict.fromkeys(check.FIGURES, None), "auc": i} for i in range(9)]
    words[0]["near"] = 0.5
    run_check(tmp_path, monkeypatch, words, {str(i): i for i in range(9)})
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert lines["auc"][:2] == ["9", "1.00"] and lines["near"] == ["1", "–", "–"]


def test_words_that_no_network_was_asked_for_are_refused_in_one_line(tmp_path, monkeypatch, capsys):
    words = [{"text": str(i), **dict.fromkeys(check.FIGURES, i)} for i in range(9)]
    with pytest.raises(SystemExit):
        run_check(tmp_path, monkeypatch, words, {"x": 1})
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "0 of its words are in" in line and line.endswith("give --words")
