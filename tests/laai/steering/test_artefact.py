"""The file of an intervention: whole or absent, itself or refused with a line that helps."""

import json

import pytest
import torch
from safetensors.torch import save_file

import laai.steering.file
from laai.errors import UserError
from laai.files import write_atomically, write_json
from laai.steering.intervention import Intervention
from laai.steering.provenance import Provenance
from laai.steering.ridge import AffineMap, RidgeMap
from laai.steering.steering import check_fits, load
from tests.tiny_models import build, shared

VECTORS = {("residual", 2): torch.linspace(-1, 1, 32), ("heads", 0): torch.randn(32), ("residual", 10): torch.ones(32)}


@pytest.fixture
def whole():
    return Intervention(
        VECTORS,
        positions="generated",
        scale=0.1,
        preserve_norm=True,
        num_heads={0: 4},
        provenance=Provenance("m", None, "abc", metrics={"exact": [0.5, 1]}, notes={"é": "日本"}),
    )


def test_round_trip(whole, tmp_path):
    path = whole.save(tmp_path / "new" / "folder" / "v.safetensors")
    again = Intervention.load(str(path))
    assert list(dict(again.items())) == list(dict(whole.items()))
    for key, vector in whole.items():
        assert torch.equal(again[key], vector)
        assert again[key].dtype == torch.float32
    for option in ("positions", "scale", "preserve_norm", "num_heads", "provenance"):
        assert getattr(again, option) == getattr(whole, option)
    assert [p.name for p in path.parent.iterdir()] == ["v.safetensors"]
    assert path.read_bytes() == again.save(tmp_path / "again.safetensors").read_bytes()


def test_a_file_can_be_replaced_and_is_readable_by_others(whole, tmp_path):
    path = whole.save(tmp_path / "v.safetensors")
    (whole * 2).save(path)
    assert Intervention.load(path).scale == 0.2
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("where", ["serialise", "replace", "disk"])
def test_a_failing_write_leaves_the_old_file_whole(whole, tmp_path, monkeypatch, where):
    path = whole.save(tmp_path / "v.safetensors")
    before = path.read_bytes()

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    if where == "serialise":
        monkeypatch.setattr(laai.steering.file, "to_bytes", fail)
    elif where == "replace":
        monkeypatch.setattr("pathlib.Path.replace", fail)
    else:
        monkeypatch.setattr("pathlib.Path.write_bytes", fail)
    with pytest.raises(UserError, match="No space left"):
        (whole * 2).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_nothing_behind(tmp_path):
    def half(temporary):
        temporary.write_text("half")
        raise KeyboardInterrupt

    (tmp_path / "file").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", half)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file", "old")]


def test_json_refuses_nan_and_keeps_the_old_file(tmp_path):
    path = write_json(tmp_path / "r.json", {"é": 1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"é": 1}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, float("nan"))
    assert json.loads(path.read_text(encoding="utf-8")) == {"é": 1}


def test_places_that_cannot_be_written(whole, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "v.safetensors", tmp_path / "folder"):
        with pytest.raises(UserError, match="cannot write"):
            whole.save(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_saved(whole, tmp_path, value):
    with torch.no_grad():
        whole["heads", 0][3] = value
    with pytest.raises(UserError, match=r"heads\.0"):
        whole.save(tmp_path / "v.safetensors")
    assert not list(tmp_path.iterdir())


def rewritten(path, tensors=lambda t: t, header=lambda h: h, entry="laai"):
    """The file at `path` with its tensors and header passed through functions."""
    original = Intervention.load(path)
    held = {f"{site}.{layer}": v.detach() for (site, layer), v in original.items()}
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    told = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["laai"])
    save_file(tensors(held), path, {entry: json.dumps(header(told))})


def renamed(new):
    return lambda t: without("heads.0")(t) | {new: t["heads.0"]}


def without(key):
    return lambda entries: {k: v for k, v in entries.items() if k != key}


DAMAGE = {
    "empty": (lambda p: p.write_bytes(b""), "not a readable safetensors"),
    "text": (lambda p: p.write_text("hello" * 100), "not a readable safetensors"),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-7]), "not a readable safetensors"),
    "truncated in its header": (lambda p: p.write_bytes(p.read_bytes()[:40]), "not a readable safetensors"),
    "header overwritten": (
        lambda p: p.write_bytes(p.read_bytes()[:20] + b"\0\xff" + p.read_bytes()[22:]),
        "safetensors",
    ),
    "a model": (lambda p: save_file({"weight": torch.ones(3)}, p), "no intervention"),
    "other entry": (lambda p: rewritten(p, entry="other"), "no intervention"),
    "no JSON": (lambda p: save_file({"residual.0": torch.ones(3)}, p, {"laai": "{"}), "damaged"),
    "JSON list": (lambda p: save_file({"residual.0": torch.ones(3)}, p, {"laai": "[1]"}), "damaged"),
    "no format": (lambda p: rewritten(p, header=without("format")), "format"),
    "newer format": (lambda p: rewritten(p, header=lambda h: h | {"format": "laai-intervention-9"}), "intervention-9"),
    "positions": (lambda p: rewritten(p, header=lambda h: h | {"positions": "first"}), "first"),
    "missing key": (lambda p: rewritten(p, header=without("scale")), "scale"),
    "scale": (lambda p: rewritten(p, header=lambda h: h | {"scale": float("nan")}), "scale"),
    "scale text": (lambda p: rewritten(p, header=lambda h: h | {"scale": "much"}), "much"),
    "heads": (lambda p: rewritten(p, header=lambda h: h | {"num_heads": {"0": 5}}), "heads"),
    "no heads": (lambda p: rewritten(p, header=lambda h: h | {"num_heads": {"0": 0}}), "heads"),
    "missing tensor": (lambda p: rewritten(p, tensors=without("residual.10")), "damaged"),
    "no tensors": (lambda p: rewritten(p, tensors=lambda t: {}), "damaged"),
    "renamed": (lambda p: rewritten(p, tensors=renamed("mlp.0")), "mlp"),
    "other layer": (
        lambda p: rewritten(p, tensors=renamed("heads.3")),
        "damaged",
    ),
    "no layer": (lambda p: rewritten(p, tensors=renamed("heads")), "damaged"),
    "twice": (lambda p: rewritten(p, tensors=lambda t: t | {"heads.00": t["heads.0"] + 1}), "damaged"),
    "bf16": (lambda p: rewritten(p, tensors=lambda t: t | {"heads.0": t["heads.0"].bfloat16()}), "fp32"),
    "matrix": (lambda p: rewritten(p, tensors=lambda t: t | {"heads.0": torch.ones(4, 8)}), "1-D"),
    "facts": (lambda p: rewritten(p, header=lambda h: h | {"training": "long"}), "training is str"),
    "NaN": (lambda p: rewritten(p, tensors=lambda t: t | {"heads.0": t["heads.0"] / 0}), "finite"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_and_foreign_files_are_refused_in_one_line(whole, tmp_path, kind):
    path = whole.save(tmp_path / "v.safetensors")
    damage, words = DAMAGE[kind]
    damage(path)
    with pytest.raises(UserError, match=words) as caught:
        Intervention.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(UserError, match="no intervention file"):
            Intervention.load(path)


def test_load_reads_whatever_the_file_holds(whole, tmp_path):
    path = whole.save(tmp_path / "v.safetensors")
    read = load(path)
    assert (type(read), read.widths(), read.provenance) == (Intervention, whole.widths(), whole.provenance)
    with pytest.raises(UserError, match="is no ridge map: its format is 'laai-intervention-1', expected cast-ridge-2"):
        RidgeMap.load(path)
    maps = RidgeMap({("residual", 0): AffineMap(*torch.ones(2, 4), torch.ones(4, 2), torch.ones(2, 4))})
    other = maps.save(tmp_path / "r.safetensors")
    assert isinstance(load(other), RidgeMap)
    assert other.read_bytes() == load(other).save(tmp_path / "again.safetensors").read_bytes()
    with pytest.raises(UserError, match="is no intervention: its format is 'cast-ridge-2'"):
        Intervention.load(other)
    with pytest.raises(UserError, match="no intervention or ridge map file at"):
        load(tmp_path / "none")


@pytest.mark.parametrize("kind", ["intervention", "ridge map"])
def test_both_kinds_fit_or_say_why_not_in_the_same_words(kind):
    model = build("llama")
    model.config.name_or_path = "first"
    steering = Intervention.zeros(model, "residual", [0])
    if kind == "ridge map":
        one = AffineMap(*torch.ones(2, 32), torch.ones(32, 2), torch.ones(2, 32))
        steering = RidgeMap({("residual", 0): one}, provenance=steering.provenance)
    with pytest.raises(UserError, match=rf"^this {kind} was made for first \(config.*\), not for .*\(config"):
        check_fits(steering, shared("qwen2"))
    model.config.name_or_path = "second"
    with pytest.warns(UserWarning, match=f"^this {kind} was made for the model first; this is second"):
        check_fits(steering, model)
    with pytest.raises(UserError, match=rf"nothing at site heads on layers any of this {kind}, which is at"):
        steering.select(site="heads")
    assert (-2 * steering).scale == (-(steering * 2)).scale == -2


def test_another_model_is_refused(tmp_path):
    vector = Intervention.random(shared("llama"), "residual", [0, 1])
    path = vector.save(tmp_path / "v.safetensors")
    assert torch.equal(Intervention.load(path, shared("llama"))["residual", 0], vector["residual", 0])
    with pytest.raises(UserError, match="configuration"):
        Intervention.load(path, shared("qwen2"))  # the same widths, another function
    narrow = Intervention({("residual", 0): torch.ones(16)}).save(tmp_path / "narrow.safetensors")
    with pytest.raises(UserError, match="width 16"):
        Intervention.load(narrow, shared("llama"))
    deep = Intervention({("residual", 7): torch.ones(32)}).save(tmp_path / "deep.safetensors")
    with pytest.raises(UserError, match="layers 0 to 2"):
        Intervention.load(deep, shared("llama"))


def test_another_name_for_the_same_configuration_is_a_warning(tmp_path):
    model = build("llama")
    model.config.name_or_path = "first"
    path = Intervention.random(model, "residual", [0]).save(tmp_path / "v.safetensors")
    model.config.name_or_path = "second"
    with pytest.warns(UserWarning, match=r"first.*second"):
        Intervention.load(path, model)
