"""Pictures: what is drawn can be told apart, and a file is whole or absent."""

from __future__ import annotations

import numpy as np
import pytest

from laai.compare import COLOURS, heat_map, picture, plot


def test_equal_series_are_all_seen_in_colours_of_their_own(tmp_path):
    points = [1, 2, 3], [0.1, 0.2, 0.3]
    with picture(tmp_path / "a.png", (3, 2)) as axes:
        axis = axes[0, 0]
        plot(axis, dict.fromkeys(("zero-shot", "unheard of", "laai"), points), xlabel="n")
        first, second, third = axis.lines
        assert first.get_markersize() > second.get_markersize() > third.get_markersize()
        assert first.get_linewidth() > second.get_linewidth() > third.get_linewidth()
        assert [first.get_color(), third.get_color()] == [COLOURS["zero-shot"], COLOURS["laai"]]
        plot(axis, {"dots": points}, line="")
        assert axis.lines[-1].get_linestyle() == "None"
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_heat_map_names_its_fields(tmp_path):
    values = np.array([[0.5, np.nan], [-0.5, 0.0]])
    with picture(tmp_path / "a.png", (3, 2)) as axes:
        heat_map(axes[0, 0], values, ["a", "b"], ["x", "y"], numbers="+.1f", cmap="RdBu", vmin=-0.5, vmax=0.5)
        written = {text.get_position(): (text.get_text(), text.get_color()) for text in axes[0, 0].texts}
        assert written == {(0, 0): ("+0.5", "w"), (0, 1): ("-0.5", "w"), (1, 1): ("+0.0", "k")}
        assert [label.get_text() for label in axes[0, 0].get_yticklabels()] == ["a", "b"]


def test_nothing_is_written_where_drawing_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), picture(tmp_path / "a.png", (3, 2)):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
