"""`Recipe`: what it refuses, and that it is the command line's options and their help."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
import yaml

import train
from laai.errors import UserError
from laai.learn.recipe import Recipe


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"site": "heart"}, "site must be one of residual, heads, not 'heart'"),
        ({"layers": "residual"}, "layers must be auto, all, a number or a list of different numbers, found 'residual'"),
        ({"layers": []}, r"layers must be .*, found \[\]"),
        ({"layers": [1, 1]}, "list of different numbers"),
        ({"layers": ["1"]}, "list of different numbers"),
        ({"positions": "first"}, "positions must be one of last_prompt, generated, all, not 'first'"),
        ({"init": "zeros"}, "init must be zero, random, cast or an intervention file, found no file at 'zeros'"),
        ({"init": "a\0b"}, "expected a name or path"),
        ({"init_scale": float("nan")}, "init_scale must be a finite number, found nan"),
        ({"source": []}, "expected source as auto, own, or tasks by name, each once"),
        ({"source": ["antonym", "antonym"]}, "each once"),
        ({"distill": -0.5}, "distill must not be negative, found -0.5"),
        ({"l1": float("nan")}, "l1 must not be negative, found nan"),
        ({"prior": "middle"}, "prior must be one of zero, start, not 'middle'"),
        ({"prior": "start"}, "prior=start .* set l1 or group_l2"),
        ({"schedule": "steep"}, "schedule must be one of linear, cosine"),
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, auto, not 'int8'"),
        ({"prefix_cache": -5}, "prefix_cache must be auto, off or a number of bytes, found -5"),
        ({"prefix_cache": "some"}, "prefix_cache must be"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line_that_names_it(options, line):
    with pytest.raises(UserError, match=line):
        Recipe(**options)


def test_its_fields_are_the_options_and_the_lines_under_them_the_help(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    for field in fields(Recipe):
        help_text = re.search(rf"--model\.{field.name} [A-Z_{{].*? (?=\(type:)", shown)
        assert help_text is not None, field.name
        assert len(help_text[0]) > len(field.name) + 40, f"{field.name} has no help"
    assert "keeps them from overruling what the model knows. 0 for the likelihood alone." in shown
    assert "--cast.shots SHOTS Demonstrations in each few-shot prompt" in shown


def test_the_command_s_defaults_are_the_recipe_s(capsys):
    with pytest.raises(SystemExit):
        train.main(["--print_config"])
    settings = yaml.safe_load(capsys.readouterr().out)["model"]
    optimizer = settings.pop("optimizer")
    assert (optimizer["class_path"], optimizer["init_args"]["lr"]) == ("torch.optim.Adam", 0.01)
    assert settings == {field.name: field.default for field in fields(Recipe) if field.name != "optimizer"}
