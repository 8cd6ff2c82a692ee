import sys
import warnings

import pytest

from laai.errors import UserError
from laai.tasks.examples import Example
from laai.tasks.loading import load_task


def fails(spec: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_task(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def hub_folder(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "premise": datasets.Value("string"),
            "hypothesis": datasets.Value("string"),
            "gold": datasets.ClassLabel(names=["no", "yes"]),
        }
    )
    columns = {"premise": list("abcda"), "hypothesis": list("efghe"), "gold": [0, 1, -1, 1, 1]}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def test_hub_class_labels_become_choices(hub_folder):
    columns = {"input": "{premise}\n{hypothesis}", "label": "gold"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        task = load_task(f"hf:{hub_folder}", columns=columns)
    assert sorted(str(w.message).split("; ")[0].removeprefix(f"hf:{hub_folder}: ") for w in caught) == [
        "1 rows without a label left out",
        "dropped 1 of 4 examples, as the first output of an input is kept",
    ]
    assert task.examples[:2] == (Example("a\ne", "no", ("no", "yes"), 0), Example("b\nf", "yes", ("no", "yes"), 1))
    assert len(task.examples) == 3


def test_a_label_column_that_is_not_asked_for_is_ignored(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"q": datasets.Value("string"), "label": datasets.ClassLabel(names=["easy", "hard"])})
    rows = {"q": ["a", "b"], "label": [0, -1]}
    datasets.DatasetDict(dev=datasets.Dataset.from_dict(rows, features=features)).save_to_disk(tmp_path / "saved")
    task = load_task(f"hf:{tmp_path}/saved", columns={"input": "q", "output": "q", "split": "dev"})
    assert task.examples == (Example("a", "a"), Example("b", "b"))


def test_hub_folder_of_files_with_splits(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "train.csv").write_text("text,answer\na,b\nc,d\n", encoding="utf-8")
    (tmp_path / "files" / "test.csv").write_text("text,answer\ne,f\n", encoding="utf-8")
    columns = {"input": "text", "output": "answer"}
    task = load_task(f"hf:{tmp_path}/files", columns={**columns, "test_split": "test"})
    assert (task.examples, task.test_examples) == ((Example("a", "b"), Example("c", "d")), (Example("e", "f"),))
    for split, message in (("nope", "cannot load split 'nope'"), ("test", "found 1")):
        with pytest.raises(UserError, match=message):
            load_task(f"hf:{tmp_path}/files", columns={**columns, "split": split})
    with pytest.raises(UserError, match="no such folder"):
        load_task(f"hf:{tmp_path}/nothing")


class Hub:
    """Stands in for the datasets package: knows some names and counts what is asked."""

    def __init__(self, known, error):
        self.known, self.error, self.asked = known, error, []
        self.config = type("config", (), {"HF_HUB_OFFLINE": False})

    def load_dataset(self, path, config, split, revision):
        self.asked.append((path, config, split, revision))
        if (path, config) not in self.known:
            raise self.error
        rows = [{"input": "a", "output": "b"}, {"input": "c", "output": "d"}]
        return type("Rows", (list,), {"features": {}, "column_names": ["input", "output"]})(rows)


@pytest.mark.parametrize(
    ("name", "known", "asked"),
    [
        ("a", ("a", None), [("a", None)]),
        ("a/b", ("a/b", None), [("a/b", None)]),
        ("a/b", ("a", "b"), [("a/b", None), ("a", "b")]),
        ("a/b/c", ("a/b", "c"), [("a/b", "c")]),
    ],
)
def test_hub_names_are_tried_in_order(monkeypatch, name, known, asked):
    hub = Hub({known}, FileNotFoundError("no such\ndata set"))
    monkeypatch.setitem(sys.modules, "datasets", hub)
    assert load_task(f"hf:{name}", columns={"split": "dev", "revision": "r"}).source == f"hf:{name}"
    assert hub.asked == [(*meaning, "dev", "r") for meaning in asked]


def test_hub_failures_are_one_line_and_a_missing_network_is_asked_once(monkeypatch):
    hub = Hub(set(), ConnectionError("unreachable\nhost"))
    monkeypatch.setitem(sys.modules, "datasets", hub)
    fails("hf:a/b", "(unreachable host); check the network")
    assert len(hub.asked) == 1
    hub.config.HF_HUB_OFFLINE = True
    fails("hf:a/b", "(unreachable host); check the network")
    assert len(hub.asked) == 3
    monkeypatch.setitem(sys.modules, "datasets", Hub(set(), FileNotFoundError("no such\ndata set")))
    fails("hf:a/b", "(no such data set); check the name")
    for name in ("a/b/c/d", "a//b", ""):
        fails(f"hf:{name}", "expected hf:name")
