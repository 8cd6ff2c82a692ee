"""The sums behind a vector: both sites at once, variances, states, devices that share, interruptions."""

from __future__ import annotations

import pytest
import torch

import laai
from cast.extraction import loop as contrast_loop
from cast.extraction.contrast import Contrast
from cast.extraction.loop import discard
from cast.extraction.samples import draw
from cast.extraction.vectors import contrast_of, extract, extract_from
from laai.errors import UserError
from laai.prompts.templates import Template


@pytest.fixture
def drawn(word_task):
    return draw(word_task.examples, 9, 3, seed=2)


def test_both_sites_in_one_pass(tiny, word_task, drawn):
    template = Template(tiny.tokenizer, word_task)
    both = extract_from(tiny, template, *drawn, site=["heads", "residual"], progress=False)
    for site in ("heads", "residual"):
        alone = extract_from(tiny, template, *drawn, site=site, progress=False)
        for key, vector in alone.items():
            assert torch.equal(both[key], vector)
    assert both.sites == ["heads", "residual"]
    assert both.num_heads == {0: 4, 1: 4, 2: 4}


def test_means_variances_and_states_agree(tiny, word_task, drawn):
    found = contrast_of(tiny, Template(tiny.tokenizer, word_task), *drawn, keep=True, batch_size=4, progress=False)
    means, few, variances = found.means(), found.means(difference=False), found.variances()
    for key, zero, difference in found.states():
        assert zero.shape == difference.shape == (9, found.widths[key])
        torch.testing.assert_close(means[key], difference.mean(0))
        torch.testing.assert_close(few[key], (zero + difference).mean(0))
        torch.testing.assert_close(variances[key], difference.var(0, unbiased=False), rtol=1e-4, atol=1e-6)


def test_steadiness_is_the_cosine_with_vectors_of_other_samples(tiny, word_task):
    """Its formula, and what it says: over draws of samples and demonstrations it is their mean cosine."""
    template, found = Template(tiny.tokenizer, word_task), []
    for seed in range(12):
        drawn = draw(word_task.examples, 6, 2, seed)
        found.append(contrast_of(tiny, template, *drawn, site="residual", layers=[2], progress=False, keep=True))
    ((_, _, differences),) = found[0].states()
    mean = differences.mean(0)
    noise = differences.double().var(0, unbiased=True).sum() / len(differences)
    assert found[0].steadiness() == {"residual": pytest.approx(float(1 - noise / mean.square().sum()), abs=1e-3)}
    vectors = torch.nn.functional.normalize(torch.stack([one.means()["residual", 2] for one in found]), dim=-1)
    among = (vectors @ vectors.T).fill_diagonal_(0).sum() / (12 * 11)
    expected = sum(one.steadiness()["residual"] for one in found) / 12
    assert expected == pytest.approx(float(among), abs=0.1)
    assert expected < 0.99, "a case in which it matters"
    alone = contrast_of(tiny, template, *draw(word_task.examples, 1, 2, 0), progress=False)
    assert alone.steadiness() == {}


@pytest.mark.parametrize(
    "shared", [{"shared_shots": True}, {"from_selected": True}, {"strategy": "k_center"}, {"kind": "few_shot"}]
)
def test_no_steadiness_is_told_of_samples_that_share_or_were_chosen(tiny, word_task, shared):
    options = {"samples": 5, "shots": 2, "site": ["heads", "residual"], "progress": False}
    assert set(extract(tiny, word_task, **options).provenance.cast["steadiness"]) == {"heads", "residual"}
    assert "steadiness" not in extract(tiny, word_task, **(options | shared)).provenance.cast
    everything = extract(tiny, word_task, **(options | {"samples": 99})).provenance.cast
    assert "steadiness" not in everything, "there are no other samples"


def test_few_shot_activations_alone(tiny, word_task, drawn):
    template, site = Template(tiny.tokenizer, word_task), {"site": "residual", "progress": False}
    few = extract_from(tiny, template, *drawn, kind="few_shot", **site)
    zero = contrast_of(tiny, template, *drawn, keep=True, **site)
    for key, states, _ in zero.states():
        torch.testing.assert_close(
            few[key].detach() - states.mean(0), extract_from(tiny, template, *drawn, **site)[key].detach(),
            rtol=1e-4, atol=1e-5,
        )  # fmt: skip
    assert few.provenance.cast["kind"] == "few_shot"
    with pytest.raises(UserError, match="kind must be one of difference, few_shot"):
        extract_from(tiny, template, *drawn, kind="zero", **site)
    with pytest.raises(UserError, match="site must be"):
        extract_from(tiny, template, *drawn, site=["mlp"], progress=False)


def test_a_trainer_changes_nothing(tiny, word_task, quiet_trainer):
    options = {"samples": 9, "shots": 3, "seed": 2, "progress": False}
    alone = extract(tiny, word_task, **options)
    for precision, tolerance in (("32-true", 1e-6), ("bf16-mixed", 0.2)):
        shared = extract(tiny, word_task, **options, batch_size=2, trainer=quiet_trainer(precision=precision))
        for key, vector in alone.items():
            torch.testing.assert_close(shared[key], vector, rtol=0, atol=tolerance)


@pytest.mark.parametrize("with_trainer", [False, True])
def test_an_interrupted_extraction_goes_on(
    tiny, word_task, quiet_trainer, tmp_path, power_cut, with_trainer
):  # fmt: skip
    options = {"samples": 12, "shots": 3, "batch_size": 2, "progress": False}
    expected = extract(tiny, word_task, **options)
    partial = tmp_path / "v.partial"
    for batches in (2, 3):
        power_cut.after(batches)
        trainer = quiet_trainer() if with_trainer else None
        with pytest.raises(RuntimeError, match="power cut"):
            extract(tiny, word_task, **options, partial=partial, trainer=trainer)
        assert [p.name for p in tmp_path.glob("*.partial*")] == ["v.partial.0"]
    power_cut.after(100)
    vector = extract(
        tiny, word_task, **options, partial=partial, trainer=quiet_trainer() if with_trainer else None
    )  # fmt: skip
    for key, value in expected.items():
        torch.testing.assert_close(vector[key], value, rtol=0, atol=1e-6)
    pairs = [pair for batch in power_cut.ran for pair in batch]
    assert sorted(pairs) == list(range(12)), "nothing is run twice"
    assert [p.name for p in tmp_path.glob("*.partial*")] == ["v.partial.0"], "kept until the vector is saved"
    again = extract(tiny, word_task, **options, partial=partial, trainer=quiet_trainer() if with_trainer else None)
    assert len(power_cut.ran) == len(pairs) // 2
    assert all(torch.equal(again[key], value) for key, value in vector.items())
    (tmp_path / "v.partial.safetensors").touch()
    discard(partial)
    assert [p.name for p in tmp_path.glob("*.partial*")] == ["v.partial.safetensors"], "no file of another kind"


def test_a_precision_that_would_convert_the_model_is_refused(tiny, word_task, quiet_trainer, weights):
    before = weights(tiny.llm)
    for precision in ("bf16-true", "16-true", "64-true"):
        with pytest.raises(UserError, match=f"found {precision}, which would convert it for good: load the model with"):
            extract(tiny, word_task, samples=2, shots=2, progress=False, trainer=quiet_trainer(precision=precision))
    assert all(torch.equal(value, before[name]) for name, value in tiny.llm.state_dict().items())
    assert {value.dtype for value in tiny.llm.state_dict().values()} == {torch.float32}


def test_another_precision_does_not_go_on(tiny, word_task, quiet_trainer, tmp_path):
    options = {"samples": 4, "shots": 2, "progress": False, "partial": tmp_path / "v.partial"}
    extract(tiny, word_task, **options, trainer=quiet_trainer(precision="bf16-mixed"))
    with pytest.raises(UserError, match="other settings; delete it"):
        extract(tiny, word_task, **options, trainer=quiet_trainer())
    extract(tiny, word_task, **options, trainer=quiet_trainer(precision="bf16-mixed"))


def test_other_weights_do_not_go_on(tiny_folder, word_task, tmp_path):
    """A model that was trained further in its folder has the same name and configuration."""
    model = laai.load_model(str(tiny_folder))
    options = {"samples": 4, "shots": 2, "progress": False, "partial": tmp_path / "v.partial"}
    extract(model, word_task, **options)
    with torch.no_grad():
        next(model.llm.parameters()).mul_(1.5)
    with pytest.raises(UserError, match="another model, other samples or other settings; delete it"):
        extract(model, word_task, **options)


def test_a_sample_that_overflows_stops_the_extraction_and_spoils_nothing(tiny, word_task, tmp_path, monkeypatch):
    """What had been run before it is kept, without it."""
    options = {"samples": 6, "shots": 2, "batch_size": 2, "progress": False}
    expected, activations, calls = extract(tiny, word_task, **options), Contrast._activations, []

    def overflowing(self, prompts, pairs):
        calls.append(pairs)
        found = activations(self, prompts, pairs)
        found[0, 3] = float("inf") if len(calls) == 4 else found[0, 3]  # zero-shot, of the second batch
        return found

    monkeypatch.setattr(Contrast, "_activations", overflowing)
    with pytest.raises(UserError, match="not finite: the model overflows in torch"):
        extract(tiny, word_task, **options, partial=tmp_path / "v")
    assert (tmp_path / "v.0").exists()
    again = extract(tiny, word_task, **options, partial=tmp_path / "v")
    for key, value in expected.items():
        torch.testing.assert_close(again[key], value, rtol=0, atol=1e-6)


def test_sums_and_what_they_are_of_change_at_once(tiny, word_task, drawn):
    """An interruption between the two would count a batch twice once the extraction goes on."""
    contrast = contrast_of(tiny, Template(tiny.tokenizer, word_task), *drawn, progress=False)
    sums, done = contrast.sums, contrast.done
    before = sums.clone(), done.clone()
    contrast.run([0])
    assert contrast.sums is not sums
    assert contrast.done is not done
    assert torch.equal(sums, before[0])
    assert torch.equal(done, before[1])


def test_work_is_kept_now_and_then(tiny, word_task, tmp_path, monkeypatch):
    monkeypatch.setattr(contrast_loop, "SAVE_SECONDS", 0.0)
    saves, save = [], Contrast.save
    monkeypatch.setattr(Contrast, "save", lambda self, path: (saves.append(int(self.done.sum())), save(self, path)))
    extract(tiny, word_task, samples=6, shots=2, batch_size=2, partial=tmp_path / "v", progress=False)
    assert saves == [2, 4, 6, 6]


def test_parts_of_several_devices(tiny, word_task, drawn, tmp_path):
    template = Template(tiny.tokenizer, word_task)
    prompts = (
        [template.encode(s.input, d) for s, d in zip(*drawn, strict=True)],
        [template.encode(s.input) for s in drawn.samples],
    )
    whole, first, second, both = (Contrast(tiny, *prompts, [("heads", 1)]) for _ in range(4))
    whole.run(range(9))
    first.run([0, 3, 5])
    second.run([1, 2])
    both.restore([])
    for part, name in ((first, "a"), (second, "b"), (first, "c")):  # c: a device's file that another one took over
        part.save(tmp_path / name)
    both.restore([tmp_path / name for name in "abc"])
    assert set(both.missing()) == {4, 6, 7, 8}
    both.run(both.missing())
    torch.testing.assert_close(both.means(), whole.means())
    other = Contrast(tiny, *prompts, [("heads", 2)])
    with pytest.raises(UserError, match="other settings; delete it"):
        other.restore([tmp_path / "a"])
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:99])
    with pytest.raises(UserError, match=r"cannot read .*a, part of an earlier extraction"):
        both.restore([tmp_path / "a"])
