"""One bar over all optimiser steps."""

from __future__ import annotations

from laai.evaluation.arms import Arm, evaluate_arms
from laai.runtime.progress import StepProgress


class Bar(StepProgress):
    """Notes where the bar stands after each batch."""

    def __init__(self):
        super().__init__()
        self.seen, self.tested = [], set()

    def on_train_batch_end(self, *args):
        super().on_train_batch_end(*args)
        self.seen.append((self.train_progress_bar.n, self.train_progress_bar.total))

    def on_test_batch_start(self, *args):
        super().on_test_batch_start(*args)
        self.tested.add(self.test_progress_bar.desc)


def test_it_counts_steps_over_all_epochs(learn, quiet_trainer, words_data):
    bar = Bar()
    trainer = quiet_trainer(max_steps=5, callbacks=[bar], enable_progress_bar=True)
    learn(trainer=trainer, data=words_data(6, batch_size=4, validation=2))
    assert bar.seen == [(step, 5) for step in range(1, 6)]
    assert float(bar.get_metrics(trainer, trainer.lightning_module)["examples/s"]) > 0
    assert bar._examples == 4 + 2 + 4 + 2 + 4
    assert "v_num" not in bar.get_metrics(trainer, trainer.lightning_module)


def test_it_names_the_method_under_test(tiny, quiet_trainer, words_data):
    bar = Bar()
    evaluate_arms(
        quiet_trainer(callbacks=[bar], enable_progress_bar=True), tiny, words_data(), [Arm("one"), Arm("two")]
    )
    assert {name.rstrip(": ") for name in bar.tested} == {"test one", "test two"}
