"""The registry of methods, and what each of them does."""

from __future__ import annotations

import inspect
import re
import sys

import pytest
import torch

import cast
from laai import methods
from laai.errors import UserError
from laai.evaluation.arms import Arm
from laai.methods import METHODS, Setting, build, register
from laai.steering.intervention import Intervention
from laai.steering.ridge import RidgeMap

FAST = {"laai": {"steps": 1}}


@pytest.fixture
def setting(tiny, words_data):
    return Setting(tiny, words_data(num_examples=4), options=FAST)


def test_every_method_has_a_paper(setting):
    files = {sys.modules[getattr(one, "func", one).__module__] for one in METHODS.values()}
    assert files
    for file in files:
        assert re.search(r"arXiv \d{4}\.\d{5}", inspect.getdoc(file).splitlines()[0]), file.__name__


def test_prompting(setting):
    zero, few = build(["zero-shot", "few-shot"], setting)
    assert (zero.steering, zero.demonstrations) == (None, ())
    assert (few.steering, few.demonstrations) == (None, setting.data.splits.train)


def test_cast_is_the_own_vector_at_its_best_scale(setting, tiny):
    (arm,) = build(["cast"], setting)
    own = cast.extract_own(tiny, setting.template, setting.data.splits.train, progress=False)
    scale = cast.best_scale(tiny, own, setting.prompts)
    assert arm.steering.scale == scale
    assert all(torch.equal(arm.steering[key], vector) for key, vector in own.items())


def test_what_is_given_is_not_made_again(tiny, words_data, monkeypatch):
    monkeypatch.setattr("laai.methods.registry.extract_own", lambda *_, **__: pytest.fail("it is there"))
    monkeypatch.setattr("laai.methods.laai.fit", lambda *_, **__: pytest.fail("it is there"))
    own = Intervention.random(tiny, "residual", [0, 2], norm=0.5)
    learned = Intervention.random(tiny, "residual", [1], norm=2.0, seed=1)
    given = Setting(tiny, words_data(num_examples=1), made={"own": own, "laai": learned})
    shown, taken, random = build(["cast", "laai", "random"], given)
    assert all(torch.equal(shown.steering[key], vector) for key, vector in own.items())
    assert taken.steering is learned
    ((key, direction),) = random.steering.items()
    assert key == ("residual", 1)
    assert direction.norm().item() == pytest.approx(learned["residual", 1].norm().item(), rel=1e-5)
    assert not torch.allclose(direction, learned["residual", 1])


def test_laai_starts_from_half_the_own_vector_and_is_learned_once(setting, monkeypatch):
    fits, real = [], methods.laai.fit
    monkeypatch.setattr(methods.laai, "fit", lambda *a, **o: (fits.append(o), real(*a, **o))[1])
    laai, random, again = build(["laai", "random", "laai"], setting)
    assert laai is again
    (learned,) = fits
    assert learned["steps"] == 1
    assert learned["init"].scale == 0.5
    assert {key: v.norm().item() for key, v in random.steering.items()} == pytest.approx(
        {key: v.norm().item() for key, v in laai.steering.items()}, rel=1e-4
    )
    zero, whole = build(["laai-zero", "laai-all"], setting)
    assert [one["init"] for one in fits[1:2]] == ["zero"]
    assert whole.steering.layers == [0, 1, 2] != laai.steering.layers
    assert [zero.name, whole.name] == ["laai-zero", "laai-all"]


def test_one_example_has_no_vector_of_its_own(tiny, words_data):
    alone = Setting(tiny, words_data(num_examples=1), options=FAST)
    (arm,) = build(["laai"], alone)
    assert arm.steering.layers, "it learns from zero"
    with pytest.raises(UserError, match="needs at least 2"):
        build(["cast"], alone)


def test_the_ridge_map_is_of_the_own_vectors_layers_and_scale(setting):
    plain, ridge = build(["cast", "cast-ridge"], setting)
    assert isinstance(ridge.steering, RidgeMap)
    assert (ridge.steering.layers, ridge.steering.scale) == (plain.steering.layers, plain.steering.scale)
    for key, one in ridge.steering.maps.items():
        torch.testing.assert_close(one.mean, plain.steering[key].detach(), rtol=1e-4, atol=1e-5)


def test_others_register_methods(setting, monkeypatch):
    monkeypatch.setattr(methods.registry, "METHODS", dict(METHODS))
    register("nothing")(lambda setting: None)
    register("ours")(lambda setting: Arm("theirs", demonstrations=setting.data.splits.train[:1]))
    (arm,) = build(["nothing", "ours"], setting)
    assert (arm.name, len(arm.demonstrations)) == ("ours", 1), "what has nothing to show is left out"
    with pytest.raises(UserError, match=r"found 'our'; did you mean ours\?"):
        build(["our"], setting)
