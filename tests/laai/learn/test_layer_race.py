"""The race of layers on the training examples, against one fit by layer and fold."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from laai.engine import Engine, mean_nll
from laai.errors import UserError
from laai.learn.layer_race import LayerProfile, _spread, profile_layers
from laai.learn.monitor import profile_figure
from laai.learn.steered import SteeredLM
from laai.prompts.batches import collate
from laai.prompts.templates import Template
from laai.steering.intervention import Intervention

ONE_ROUND = [(3, 4)]


@pytest.fixture
def prompts(tiny, word_task):
    template = Template(tiny.tokenizer, word_task)
    return [template.encode(e.input, answer=e.output) for e in word_task.examples[:7]]


def fitted_apart(model, site, positions, layer, learn, held, steps, rate):
    """Held-out loss of one vector that learned from `learn`, by whole forwards."""
    start = Intervention.zeros(model, site, [layer], positions=positions)
    steered = SteeredLM(Engine(model, "off"), start)
    step = rate * Engine(model).activation_rms([*learn, *held], site, [layer])[layer]
    try:
        optimizer = torch.optim.Adam(steered.intervention.parameters(), lr=step)
        for _ in range(steps):
            batch = collate(learn, 0)
            optimizer.zero_grad()
            mean_nll(steered(batch).nll, batch.labels).backward()
            optimizer.step()
        batch = collate(held, 0)
        with torch.no_grad():
            return mean_nll(steered(batch).nll, batch.labels).item()
    finally:
        steered.detach()


@pytest.mark.parametrize("positions", ["last_prompt", "generated", "all"])
@pytest.mark.parametrize("site", ["residual", "heads"])
def test_each_layer_scores_as_two_fits_by_whole_forwards(tiny, prompts, site, positions):
    profile = profile_layers(Engine(tiny), site, positions, prompts, rounds=ONE_ROUND, rate=0.05)
    for layer in range(3):
        halves = prompts[::2], prompts[1::2]
        apart = [fitted_apart(tiny, site, positions, layer, *pair, 4, 0.05) for pair in (halves, halves[::-1])]
        assert profile.nll[layer] == pytest.approx(
            sum(apart) / 2, abs=2e-3
        )  # Adam magnifies rounding where g is near 0
    assert profile.steps == {0: 4, 1: 4, 2: 4}
    assert profile.best == min(profile.nll, key=profile.nll.get)


def test_the_better_ones_go_on(tiny, prompts):
    first = profile_layers(Engine(tiny), "residual", "last_prompt", prompts, rounds=[(3, 2)])
    raced = profile_layers(Engine(tiny), "residual", "last_prompt", prompts, rounds=[(3, 2), (2, 3), (1, 1)])
    order = sorted(first.nll, key=first.nll.get)
    assert raced.steps[order[2]] == 2
    assert raced.nll[order[2]] == pytest.approx(first.nll[order[2]])
    assert sorted(raced.steps.values()) == [2, 5, 6]
    assert raced.steps[raced.best] == 6


def test_the_model_is_untouched(tiny, prompts, weights):
    before = weights(tiny.llm)
    chosen = {profile_layers(Engine(tiny), "heads", "last_prompt", prompts, rounds=ONE_ROUND).best for _ in range(2)}
    assert len(chosen) == 1
    after = tiny.llm.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in tiny.llm.modules())


def test_prefixes_are_run_once(tiny, prompts):
    """More steps run more suffixes, and nothing else."""
    counts, suffix = [], max(len(p.suffix) for p in prompts)
    for steps in (1, 8):
        runs = []
        handle = tiny.llm.get_input_embeddings().register_forward_hook(
            lambda _, __, out, r=runs: r.append(out.shape[1])
        )
        try:
            profile_layers(Engine(tiny), "residual", "last_prompt", prompts, rounds=[(3, steps)])
        finally:
            handle.remove()
        counts.append((sum(length >= suffix for length in runs), sum(length < suffix for length in runs)))
    (long, short), (long_too, more) = counts
    assert long == long_too
    assert more - short == 3 * 7


def test_two_examples_at_least(tiny, prompts):
    assert profile_layers(Engine(tiny), "residual", "all", prompts[:2], rounds=[(3, 1)]).best in (0, 1, 2)
    with pytest.raises(UserError, match="at least 2"):
        profile_layers(Engine(tiny), "residual", "all", prompts[:1])


def test_the_choice_is_what_is_learned_and_plotted(learn):
    module = learn(steps=1, site="residual", layers="auto")
    assert module.intervention.layers == [module.prepared.profile.best]
    assert learn(steps=1, site="heads", layers="auto").prepared.profile is None


def test_figure_shows_every_layer():
    profile = LayerProfile(4, {0: 3.0, 2: 2.0, 4: 1.0}, {0: 2, 2: 4, 4: 8})
    (axes,) = profile_figure(profile).axes
    assert "layer 4" in axes.get_title()
    assert sorted(text.get_text() for text in axes.texts) == ["2", "4", "8"]


@pytest.mark.parametrize("count", [2, 5, 8])
@pytest.mark.parametrize("layers", [[0], list(range(7)), list(range(30)), [3, 7, 11, 15, 19, 23, 27, 31]])
def test_candidates_are_spread_evenly(layers, count):
    spread = _spread(layers, count)
    assert len(spread) == min(count, len(layers))
    assert spread == sorted(set(spread))
    assert set(spread) <= set(layers)
    assert (spread[0], spread[-1]) == (layers[0], layers[-1])
    places = [layers.index(layer) for layer in spread]
    gaps = {b - a for a, b in pairwise(places)}
    assert max(gaps, default=0) - min(gaps, default=0) <= 1
