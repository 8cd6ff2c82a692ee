"""The committed reports are what the studies say of the committed rows, to the byte."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
OTHER_STARTS = "--seeds 0 1 --sizes 2 5 10 --starts zero own mean blend one similar selected own:1"
GEMMA = "--sources sib200_eng_Latn --targets sib200_deu_Latn sib200_fra_Latn sib200_spa_Latn"
REPORTS = {
    **{f"cast_transfer_{suite}": f"cast_transfer --suite {suite}" for suite in ("topics", "paper", "letters", "words")},
    "cast_transfer_gemma": f"cast_transfer {GEMMA}",
    **dict.fromkeys(
        ("cast_analysis", "cast_analysis_topics", "cast_vectors_topics", "cast_vectors_paper"), "cast_analysis"
    ),
    "transfer_settings": "transfer_settings",
    "laai_starts": "laai_starts",
    "laai_starts_recipes": f"laai_starts {OTHER_STARTS}",
    "laai_starts_steps": "laai_starts --seeds 0 1 2 3 4 --sizes 5",
    "laai_starts_residual": "laai_starts --seeds 0 --sizes 5 --starts zero own",
}
PRINTED = ("README", "cast_prediction", "reliability")
"""Reports that are no study's own."""


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """Pictures that are drawn, but not rendered: that takes longest."""
    names = []
    monkeypatch.setattr("laai.compare.pictures.write_atomically", lambda path, _: names.append(path.name))
    return names


def test_every_report_is_made_anew_here():
    assert {path.stem for path in RESULTS.glob("*.md")} - set(PRINTED) == set(REPORTS)


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_says_what_it_said(scripts, tmp_path, drawn, name):
    script, *arguments = REPORTS[name].split()
    (study,) = scripts(script)
    shutil.copy(RESULTS / f"{name}.json", tmp_path)
    study.main([*arguments, "--report", "--json", str(tmp_path / f"{name}.json")])
    made = sorted(path.name for path in tmp_path.iterdir())
    assert f"{name}.md" in made
    for file in made:
        assert (tmp_path / file).read_bytes() == (RESULTS / file).read_bytes(), file
    assert set(drawn) == {path.name for path in RESULTS.glob("*.png") if path.name in drawn}
    assert bool(drawn) == bool([*RESULTS.glob(f"{name}.png"), *RESULTS.glob(f"{name}_*.png")])


def test_what_predicts_a_transfer(scripts, tmp_path):
    (prediction,) = scripts("cast_prediction")
    prediction.main(["--output", str(tmp_path / "out.md")])
    assert (tmp_path / "out.md").read_bytes() == (RESULTS / "cast_prediction.md").read_bytes()


def test_methods_compared(scripts, drawn, tmp_path, capsys):
    """The README's numbers: LAAI beside few-shot prompting over the built-in tasks."""
    (study,) = scripts("compare_methods")
    study.main(["--report", "--plot", str(tmp_path / "compare_methods.png")])
    out = capsys.readouterr().out
    assert "| **mean** | **0.001** | **0.488** | **0.331** | **0.497** |\n" in out
    assert (
        "LAAI / few-shot: 1.02 (95% bootstrap interval over tasks, paired: 0.97 to 1.08). Not below few-shot on 10 "
        in out
    )
    assert drawn == ["compare_methods.png"]
