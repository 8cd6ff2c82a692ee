"""`LAAIModule`: what it learns, what it leaves alone, and what its checkpoints hold."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LambdaCallback

from cast import extract_own
from laai.engine import Engine, mean_nll
from laai.errors import UserError
from laai.learn.recipe import Recipe
from laai.learn.steered import SteeredLM
from laai.prompts.batches import collate
from laai.prompts.templates import Template
from laai.runtime.data import encode_training
from laai.steering.intervention import Intervention


class Losses(Callback):
    """The loss of every step."""

    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, module, outputs, *_):
        self.values.append(float(outputs["loss"]))


def vectors(module):
    return {key: value.detach().clone() for key, value in module.intervention.items()}


def assert_close(a, b, **tolerance):
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], **tolerance)


@pytest.mark.parametrize("site", ["heads", "residual"])
@pytest.mark.parametrize("positions", ["last_prompt", "generated", "all"])
def test_loss_goes_down_and_only_vectors_change(learn, tiny, weights, site, positions):
    before, losses = weights(tiny.llm), Losses()
    module = learn(steps=8, site=site, layers="all", positions=positions, callbacks=[losses])
    assert losses.values[-1] < losses.values[0] - 0.05
    assert all(bool(v.ne(0).any()) for v in vectors(module).values())
    after = tiny.llm.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(p.requires_grad or p.grad is not None for p in tiny.llm.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny.llm.modules())


@pytest.mark.parametrize(("site", "groups"), [("heads", 4), ("residual", 1)])
def test_penalties_give_the_proximal_point_with_exact_zeros(learn, site, groups):
    options = {"steps": 1, "site": site, "layers": "all", "optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}
    module = learn(**options)
    free, rate = vectors(module), {layer: 0.1 * rms for layer, rms in module.prepared.rms.items()}
    entries = torch.cat([v.abs() / rate[key[1]] for key, v in free.items()])
    l1 = float(entries.median())
    for key, v in vectors(learn(l1=l1, **options)).items():
        expected = free[key].sign() * (free[key].abs() - l1 * rate[key[1]]).clamp_min(0)
        torch.testing.assert_close(v, expected)
        assert torch.equal(v == 0, expected == 0)
    norms = {key: v.view(groups, -1).norm(dim=1, keepdim=True) for key, v in free.items()}
    strength = float(torch.cat([n / rate[key[1]] for key, n in norms.items()]).median())
    zeros = 0
    for key, v in vectors(learn(group_l2=strength, **options)).items():
        shrunk = (1 - strength * rate[key[1]] / norms[key]).clamp_min(0)
        torch.testing.assert_close(v.view(groups, -1), free[key].view(groups, -1) * shrunk)
        zeros += int((v.view(groups, -1) == 0).all(dim=1).sum())
    assert 0 < zeros < 3 * groups


@pytest.mark.parametrize("penalty", ["l1", "group_l2"])
def test_a_strong_penalty_leaves_exactly_nothing(learn, penalty):
    module = learn(steps=5, layers="all", **{penalty: 50.0})
    assert all(bool((v == 0).all()) for v in vectors(module).values())


def test_penalties_can_pull_towards_the_start(learn):
    start = vectors(learn(steps=0, layers="all", init="random"))
    options = {"layers": "all", "init": "random", "optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}
    kept = vectors(learn(steps=4, group_l2=50.0, prior="start", **options))
    assert all(torch.equal(kept[key], start[key]) for key in start), "nothing moves, to the bit"
    free = learn(steps=1, **options)
    steps = {
        k: (v - start[k]).view(4, -1).norm(dim=1) / (0.1 * free.prepared.rms[k[1]]) for k, v in vectors(free).items()
    }
    strength = float(torch.cat(list(steps.values())).median())
    some = vectors(learn(steps=1, group_l2=strength, prior="start", **options))
    for key, sizes in steps.items():
        moved = (some[key] - start[key]).view(4, -1).ne(0).any(dim=1)
        assert torch.equal(moved, sizes > strength), "other heads stay exactly"
    with pytest.raises(UserError, match="prior must be one of zero, start"):
        learn(prior="middle")


def test_zero_steps_of_each_init(learn, tiny, words_data, word_task, tmp_path):
    """With a rate of zero the vectors stay where they start."""
    data, still = words_data(), {"optimizer": lambda p: torch.optim.SGD(p, lr=0.0), "layers": "all", "steps": 1}
    assert all(bool((v == 0).all()) for v in vectors(learn(init="zero", **still)).values())

    random, again, other = (
        learn(init="random", init_scale=0.7, data=words_data(seed=seed), **still) for seed in (0, 0, 1)
    )
    assert_close(vectors(random), vectors(again), rtol=0, atol=0)
    for key, v in vectors(random).items():
        assert float(v.norm()) == pytest.approx(0.7 * random.prepared.rms[key[1]] * 32**0.5, rel=1e-5)
        assert not torch.equal(v, vectors(other)[key])

    template = Template(tiny.tokenizer, word_task)
    own = extract_own(tiny, template, data.splits.train, progress=False)
    started = learn(init="cast", init_scale=0.5, **still)
    assert_close(vectors(started), {k: 0.5 * v.detach() for k, v in own.items()})
    assert started.learned().provenance.start["own"] is True

    path = (2 * own).save(tmp_path / "own.safetensors")
    assert_close(vectors(learn(init=str(path), init_scale=0.25, **still)), {k: 2 * v.detach() for k, v in own.items()})
    assert_close(vectors(learn(given=own, **still)), dict(own.items()))


@pytest.mark.parametrize("site", ["heads", "residual"])
@pytest.mark.parametrize(("layers", "expected"), [(1, [1]), ([2, 0], [0, 2]), ("all", [0, 1, 2]), ("auto", None)])
def test_layers(learn, site, layers, expected):
    module = learn(steps=1, site=site, layers=layers)
    if expected is None:
        expected = [0, 1] if site == "heads" else module.intervention.layers
        assert len(expected) == (2 if site == "heads" else 1)
    assert module.intervention.layers == expected
    assert module.intervention.sites == [site]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"layers": [3]}, "layers 0 to 2"),
        ({"layers": [-1]}, "layers 0 to 2"),
        ({"layers": []}, "layers"),
        ({"layers": [1, 1]}, "different"),
        ({"init": "no-such-file"}, "no-such-file"),
        ({"init": "cast", "source": "no-such-task"}, "no-such-task"),
        ({"init": "cast", "source": ["antonym", "no-such-task"]}, "no-such-task"),
        ({"init": "cast", "source": []}, "each once"),
        ({"init": "cast", "source": ["antonym", "antonym"]}, "each once"),
        ({"positions": "first"}, "positions"),
    ],
)
def test_bad_options_are_refused_and_leave_no_hooks(learn, tiny, options, match):
    with pytest.raises(UserError, match=match):
        learn(**options)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny.llm.modules())


@pytest.mark.parametrize("name", ["l1", "group_l2"])
@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_penalties_must_not_be_negative(name, value):
    with pytest.raises(UserError, match=name):
        Recipe(**{name: value})


def test_starts_that_do_not_fit_are_refused(learn, tiny, words_data):
    start = Intervention.zeros(tiny, "residual", [0])
    with pytest.raises(UserError, match="no vector"):
        learn(given=start, site="residual", layers=[0, 1])
    with pytest.raises(UserError, match="no vector"):
        learn(given=start, site="heads", layers=[0])
    foreign = start.with_vectors({("residual", 0): torch.zeros(31)})
    with pytest.raises(UserError, match="width"):
        learn(given=foreign, site="residual", layers=[0])
    with pytest.raises(UserError, match="at least 2"):
        learn(init="cast", source="own", data=words_data(1))


class Overflow(torch.optim.SGD):
    """A step, then infinity in the third."""

    def step(self, closure=None):
        loss = super().step(closure)
        self.taken = getattr(self, "taken", 0) + 1
        if self.taken == 3:
            with torch.no_grad():
                self.param_groups[0]["params"][0][1] = torch.inf
        return loss


def test_a_step_that_overflows_is_undone(learn, tiny, words_data):
    options = {"layers": "all", "optimizer": lambda p: Overflow(p, lr=0.1)}
    two = vectors(learn(steps=2, **options))
    seen = []
    record = LambdaCallback(on_exception=lambda trainer, module, error: seen.append(vectors(module)))
    with pytest.raises(UserError, match="that are not after step 3: "):
        learn(steps=5, callbacks=[record], **options)
    assert_close(seen[0], two, rtol=0, atol=0)


def test_the_rate_is_in_units_of_the_activations(learn, tiny, words_data, word_task):
    """Adam's first step moves each entry by the rate: here 0.25 of the activations' root mean square, taken by hand."""
    data = words_data()
    options = {"steps": 1, "layers": "all", "data": data, "optimizer": lambda p: torch.optim.Adam(p, lr=0.25, eps=0.0)}
    for site in ("residual", "heads"):
        squares = {}
        for example in data.splits.train:
            text = f"Name the colour.\n\nQ: {example.input}\nA:"
            for layer, block in enumerate(tiny.llm.model.layers):
                of_layer = squares.setdefault(layer, [])

                def keep(x, to=of_layer):
                    to.append(x[0, -1].square().mean())

                if site == "residual":
                    handle = block.register_forward_hook(lambda _, __, out, keep=keep: keep(out))
                else:
                    handle = block.self_attn.o_proj.register_forward_pre_hook(lambda _, args, keep=keep: keep(args[0]))
                with torch.no_grad():
                    tiny.llm(input_ids=torch.tensor([tiny.tokenizer.encode(text)]))
                handle.remove()
        module = learn(site=site, **options)
        for layer, found in squares.items():
            rms = float(torch.stack(found).mean().sqrt())
            assert module.prepared.rms[layer] == pytest.approx(rms, rel=1e-4)
            moved = module.intervention[site, layer].detach().abs()
            torch.testing.assert_close(moved, torch.full_like(moved, 0.25 * rms), rtol=1e-3, atol=0)


def test_what_was_learned_says_how(learn, words_data):
    module = learn(steps=2, site="residual", layers=[1], positions="all", l1=0.1, data=words_data(seed=5))
    learned = module.learned()
    training = learned.provenance.training
    expected = {"site": "residual", "positions": "all", "init": "zero", "l1": 0.1, "steps": 2, "task": "colours"}
    expected |= {"num_examples": 6, "seed": 5, "style": "plain", "distill": 0.5, "optimizer": "Adam", "lr": 0.01}
    assert expected.items() <= training.items()
    assert learned.provenance.config_hash == module.language_model.config_hash
    assert (learned.positions, learned.scale) == ("all", 1.0)


def test_no_distillation_is_plain_likelihood_learning(learn, tiny, words_data):
    data, losses = words_data(6), Losses()
    module = learn(steps=3, layers=[0, 2], distill=0.0, data=data, callbacks=[losses])
    assert module.prepared.teacher == []
    by_hand = Intervention.zeros(tiny, "heads", [0, 2])
    batch = collate([p for _, p in encode_training(module.template, data.splits.train)], tiny.pad)
    steered = SteeredLM(Engine(tiny), by_hand)
    try:
        groups = [{"params": [v], "lr": 0.01 * module.prepared.rms[layer]} for (_, layer), v in by_hand.items()]
        optimizer = torch.optim.Adam(groups)
        for seen in losses.values:
            loss = mean_nll(steered(batch).nll, batch.labels)
            assert seen == pytest.approx(loss.item(), abs=1e-4)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    finally:
        steered.detach()
    assert_close(vectors(module), {key: v.detach() for key, v in by_hand.items()}, rtol=1e-3, atol=1e-5)
