"""`Intervention`: construction, algebra, selection and what it refuses."""

import math

import pytest
import torch
from transformers import AutoModel

from laai.errors import UserError
from laai.models.identity import config_hash
from laai.steering.intervention import Intervention
from laai.steering.provenance import Provenance
from tests.tiny_models import build, hooks_of, model_of, shared, tokens

A = {("residual", 0): torch.arange(4.0), ("heads", 1): torch.tensor([1.0, -2.0, 3.0, -4.0])}
B = {("residual", 0): torch.ones(4), ("residual", 2): torch.full((4,), 0.5)}


def values(intervention):
    """What is added to each activation."""
    return {key: (intervention.scale * vector).detach().tolist() for key, vector in intervention.items()}


def test_sums_differences_and_multiples():
    a, b = Intervention(A, scale=2.0), Intervention(B, scale=0.5)
    total = {("heads", 1): [2, -4, 6, -8], ("residual", 0): [0.5, 2.5, 4.5, 6.5], ("residual", 2): [0.25] * 4}
    assert values(a + b) == total
    assert values(a - b) == total | {("residual", 0): [-0.5, 1.5, 3.5, 5.5], ("residual", 2): [-0.25] * 4}
    assert values(b + a) == values(a + b)
    assert values(-a) == values(a * -1) == values(-1 * a) == {k: (-2 * v).tolist() for k, v in A.items()}
    assert (3 * a).scale == 6.0
    assert (a + b).scale == 1.0
    mixed = a + 0.5 * b - a
    assert values(mixed)["residual", 2] == [0.125] * 4
    assert values(mixed)["heads", 1] == [0.0] * 4


def test_algebra_leaves_its_operands_alone():
    a, b = Intervention(A, scale=2.0), Intervention(B)
    before = values(a), values(b)
    for result in (a + b, a - b, 2 * a, -a, a.select(), a.with_vectors(dict(a.items()))):
        with torch.no_grad():
            for vector in result.parameters():
                vector.add_(1)
    assert (values(a), values(b)) == before
    source = torch.zeros(4)
    held = Intervention({("residual", 0): source})
    source += 1
    assert values(held) == {("residual", 0): [0.0] * 4}


def test_vectors_are_fp32_parameters_in_a_fixed_order():
    mixed = {("residual", 10): torch.ones(4).bfloat16(), ("residual", 2): torch.ones(4).double(), **A}
    intervention = Intervention(mixed)
    assert list(dict(intervention.items())) == [("heads", 1), ("residual", 0), ("residual", 2), ("residual", 10)]
    assert all(v.dtype == torch.float32 and v.requires_grad and v.is_leaf for v in intervention.parameters())
    assert len(intervention) == len(list(intervention.parameters())) == 4
    assert intervention.layers == [0, 1, 2, 10]
    assert intervention.sites == ["heads", "residual"]
    assert torch.equal(intervention["heads", 1], A["heads", 1])


def test_select():
    intervention = Intervention(A | B, scale=3.0, positions="all", preserve_norm=True)
    assert list(dict(intervention.select(layers=[0, 7]).items())) == [("residual", 0)]
    assert list(dict(intervention.select(site="heads").items())) == [("heads", 1)]
    part = intervention.select(layers=[2], site="residual")
    assert (part.scale, part.positions, part.preserve_norm) == (3.0, "all", True)
    for options in ({"layers": [5]}, {"layers": []}, {"layers": [0], "site": "heads"}):
        with pytest.raises(UserError, match=r"\[0, 1, 2\]"):
            intervention.select(**options)


def test_norms_are_per_head_and_scaled():
    intervention = Intervention(A, scale=2.0, num_heads={1: 2})
    norms = intervention.norms()
    torch.testing.assert_close(norms["heads", 1], torch.tensor([2 * math.sqrt(5), 10.0]))
    torch.testing.assert_close(norms["residual", 0], torch.tensor([2 * math.sqrt(14)]))
    assert torch.equal((-intervention).norms()["heads", 1], norms["heads", 1])


def test_zeros_and_random_fit_the_model():
    model = shared("gemma3_text")
    zeros = Intervention.zeros(model, "heads", [0, 2], positions="generated")
    assert {key: v.shape for key, v in zeros.items()} == {("heads", 0): (48,), ("heads", 2): (48,)}
    assert not any(v.any() for v in zeros.parameters())
    assert zeros.num_heads == {0: 4, 2: 4}
    assert zeros.positions == "generated"
    assert zeros.provenance.config_hash == config_hash(model.config)
    drawn, again, other = (Intervention.random(model, "residual", [1, 0], norm=3.0, seed=s) for s in (0, 0, 1))
    for key, vector in drawn.items():
        assert vector.norm().item() == pytest.approx(3.0, rel=1e-5)
        assert torch.equal(vector, again[key])
        assert not torch.allclose(vector, other[key])
    assert not torch.allclose(drawn["residual", 0], drawn["residual", 1])
    wrapped = model_of("gemma3_text")
    assert Intervention.zeros(wrapped, "residual", [0]).provenance.base_model == wrapped.name


@pytest.mark.parametrize(
    ("build_it", "words"),
    [
        (lambda: Intervention(A, positions="first"), "last_prompt, generated, all"),
        (lambda: Intervention({("mlp", 0): torch.ones(4)}), "residual, heads"),
        (lambda: Intervention({("residual", 0): torch.ones(2, 4)}), "1-D"),
        (lambda: Intervention(A) + Intervention(A, positions="all"), "positions"),
        (lambda: Intervention(A) - Intervention(A, preserve_norm=True), "preserve_norm"),
        (lambda: Intervention(A) + Intervention({("heads", 1): torch.ones(5)}), "4 and 5"),
        (
            lambda: (
                Intervention(A, provenance=Provenance(config_hash="a"))
                + Intervention(A, provenance=Provenance(config_hash="b"))
            ),
            "base",
        ),
        (lambda: Intervention.zeros(shared("llama"), "residual", [3]), "layers 0 to 2"),
        (lambda: Intervention.zeros(shared("llama"), "residual", [-1]), "layers 0 to 2"),
        (lambda: Intervention(A).attach(shared("llama")), "width 4"),
        (lambda: Intervention({("residual", 9): torch.ones(32)}).attach(shared("llama")), "layers 0 to 2"),
    ],
)
def test_refusals(build_it, words):
    hooks = hooks_of(shared("llama"))
    with pytest.raises(UserError, match=words):
        build_it()
    assert hooks_of(shared("llama")) == hooks


def test_adding_something_else_is_a_type_error():
    with pytest.raises(TypeError):
        Intervention(A) + 1


def test_a_model_without_a_head_is_refused_and_left_alone():
    model = AutoModel.from_config(build("llama").config)
    with pytest.raises(UserError, match="causal"):
        Intervention({("residual", 0): torch.ones(32)}).attach(model)
    assert not hooks_of(model)


def test_detaching_restores_also_after_an_error_and_keeps_foreign_hooks():
    model, seen = build("llama"), []
    model.model.layers[0].register_forward_hook(lambda *_: seen.append(1))
    intervention = Intervention.random(model, "residual", [0, 1])

    def fail():
        with intervention.on(model):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with torch.no_grad():
        model(input_ids=tokens(1, 3))
    assert seen == [1]
    assert len(hooks_of(model)) == 1
    assert "generate" not in vars(model)


def test_detaching_out_of_order_is_refused():
    model = build("llama")
    first, second = (Intervention.random(model, "residual", [0]).attach(model) for _ in range(2))
    with pytest.raises(RuntimeError, match="reverse order"):
        first.detach()
    second.detach()
    first.detach()
    assert "generate" not in vars(model)


def test_scale_zero_is_the_identity_and_vectors_act_as_they_are_now():
    model, ids = shared("llama"), tokens(1, 4)
    intervention = Intervention.random(model, "residual", [0], scale=0.0, positions="all", norm=5.0)
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with intervention.on(model):
            assert torch.equal(model(input_ids=ids).logits, plain)
            intervention.scale = 1.0
            strong = model(input_ids=ids).logits
            intervention["residual", 0].zero_()
            assert torch.equal(model(input_ids=ids).logits, plain)
    assert not torch.allclose(strong, plain, atol=1e-2)
