"""One run of train.py as a newcomer would start it, on the default model: it must be worth it."""

from __future__ import annotations

import json

from laai.steering.intervention import Intervention


def test_ten_examples_beat_zero_shot(run_train, default_model):
    run = run_train("--data.task", "present-past", "--data.test", "20", "--trainer.max_steps", "8", tiny=False)
    rows = {row["method"]: row for row in json.loads((run / "results.json").read_text())["rows"]}
    assert rows["laai"]["exact_match"] > rows["zero-shot"]["exact_match"]
    assert rows["laai"]["nll"] < rows["zero-shot"]["nll"] - 0.3
    assert rows["laai"]["nll"] < rows["cast"]["nll"]
    assert rows["laai"]["prompt_tokens"] < rows["few-shot"]["prompt_tokens"] / 5
    path = run / "intervention.safetensors"
    assert path.stat().st_size < 100_000
    assert Intervention.load(path, default_model).provenance.base_model == "default"
    assert (run / "checkpoints" / "last.ckpt").stat().st_size < 400_000
