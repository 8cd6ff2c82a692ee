import json
import os
import warnings
from pathlib import Path

import pytest

from laai.errors import UserError
from laai.tasks.examples import Example
from laai.tasks.loading import load_task

DATA = Path(os.environ.get("LAAI_DATA", Path(__file__).parents[4] / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no data at {DATA}; LAAI_DATA names another folder")
ROWS = [{"input": "hot", "output": "cold"}, {"input": "up", "output": "down"}]


@pytest.fixture
def write(tmp_path):
    def write_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


def jsonl(*rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def fails(spec, message: str, **arguments) -> None:
    with pytest.raises(UserError) as caught:
        load_task(spec, **arguments)
    text = str(caught.value)
    assert message in text
    assert "\n" not in text
    assert Path(str(spec)).name in text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("antonyms.json", json.dumps(ROWS, indent=4)),
        ("antonyms.jsonl", jsonl(*ROWS)),
        ("antonyms.jsonl", "\n" + jsonl(*ROWS).replace("\n", "\r\n\r\n")),
        ("antonyms.csv", "input,output\nhot,cold\nup,down\n"),
        ("antonyms.csv", b"\xef\xbb\xbfinput,output\r\nhot,cold\r\n\r\nup,down"),
        ("antonyms.CSV", 'output,input,more\n cold ,"hot ",x\ndown,up,\n'),
    ],
)
def test_all_formats_give_the_same_task(write, name, content):
    task = load_task(write(name, content))
    assert task.examples == (Example("hot", "cold"), Example("up", "down"))
    assert (task.name, task.input_prefix, task.answer_prefix) == ("antonyms", "Q: ", "A:")


def test_a_path_may_be_text(write):
    assert load_task(str(write("t.jsonl", jsonl(*ROWS)))).name == "t"


def test_choices_and_labels_agree_in_every_form(write):
    options = ["no", "yes"]
    expected = (Example("a", "yes", ("no", "yes"), 1), Example("b", "no", ("no", "yes"), 0))
    rows = [{"input": "a", "output": "yes", "choices": options}, {"input": "b", "label": 0, "choices": options}]
    assert load_task(write("t.jsonl", jsonl(*rows))).examples == expected
    assert load_task(write("pipes.csv", "input,label,choices\na,1,no|yes\nb,0,no | yes\n")).examples == expected
    listed = 'input,output,choices\na,yes,"[""no"", ""yes""]"\nb,no,no|yes\n'
    assert load_task(write("listed.csv", listed)).examples == expected
    table = {"choices": options, "examples": [{"input": "a", "label": 1}, {"input": "b", "output": "no"}]}
    assert load_task(write("table.json", json.dumps(table))).examples == expected


def test_a_table_gives_its_fields(write):
    table = {"input_prefix": "", "answer_prefix": "=", "licence": "CC0", "language": "de", "examples": ROWS}
    task = load_task(write("table.json", json.dumps(table)))
    assert (task.input_prefix, task.answer_prefix, task.licence, task.language) == ("", "=", "CC0", "de")
    fails(write("bad.json", json.dumps({"licence": 3, "examples": ROWS})), "licence is the number 3, expected a text")


def test_columns_rename_fill_templates_and_reach_into_values(write):
    rows = [{"p": "it rains", "n": n, "gold": 1, "o": {"text": ["dry", "wet"]}} for n in (1, 2)]
    path = write("t.jsonl", jsonl(*rows))
    columns = {"input": "{p}\n{n}", "label": "gold", "choices": "o.text"}
    assert load_task(path, columns=columns).examples[0] == Example("it rains\n1", "wet", ("dry", "wet"), 1)
    constant = load_task(path, columns={**columns, "choices": "no|maybe {n}"})
    assert constant.examples[1].choices == ("no", "maybe 2")
    fails(path, "no key 'q'; found keys: p, n, gold, o", columns={"input": "{q}", "output": "p"})
    fails(path, "columns has no field 'text'", columns={"text": "p"})
    fails(path, "'o' in a template is an object", columns={"input": "{o}", "output": "p"})


def test_named_labels_and_lettered_choices(write):
    named = {"text": ["wet", "dry"], "label": ["A", "B"]}
    row = {"q": "rain?", "key": "B", "o": named, "sure": True, "n": 2}
    path = write("t.jsonl", jsonl(row, {**row, "q": "sun?"}))
    columns = {"input": "{q}\n{choices}", "choices": "o.text", "label": "key", "labels": "o.label"}
    expected = Example("rain?\nA. wet\nB. dry", "dry", ("wet", "dry"), 1)
    assert load_task(path, columns=columns).examples[0] == expected
    assert load_task(path, columns={**columns, "labels": "A|B"}).examples[0] == expected
    assert load_task(path, columns={**columns, "label": "n", "labels": "1|2"}).examples[0] == expected
    sure = {"input": "q", "choices": "no|yes", "label": "sure", "labels": "False|True"}
    assert load_task(path, columns=sure).examples[0] == Example("rain?", "yes", ("no", "yes"), 1)
    fails(path, "label 'B' is none of labels: C, D", columns={**columns, "labels": "C|D"})
    fails(path, "label 'a list' is none of labels", columns={**columns, "label": "o.text"})


def test_huge_lines_and_line_separators_inside_texts(write):
    long = "x" * 300_000
    rows = [{"input": long, "output": "a\u2028b"}, {"input": "c", "output": "d"}]
    assert load_task(write("t.jsonl", jsonl(*rows))).examples[0] == Example(long, "a\u2028b")
    assert load_task(write("t.csv", f'input,output\n{long},a\n"c\nd",e\n')).examples[1].input == "c\nd"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", "a\tb", "expected a .json, .jsonl or .csv file"),
        ("t.jsonl", "", "the file is empty"),
        ("t.json", " \n", "the file is empty"),
        ("t.json", "[]", "needs at least 2 examples, found 0"),
        ("t.csv", "input,output\n", "needs at least 2 examples, found 0"),
        ("t.jsonl", jsonl(ROWS[0]), "needs at least 2 examples, found 1"),
        ("t.jsonl", jsonl(ROWS[0]) + "{'input': 1}\n", "t.jsonl, line 2: not valid JSON"),
        ("t.json", '[\n{"input": "a",\n}]', "t.json, line 3: not valid JSON"),
        ("t.json", "[" * 100_000, "not usable JSON"),
        ("t.jsonl", f'{{"input": {"9" * 5000}}}', "line 1: not usable JSON"),
        ("t.json", "null", "found null"),
        ("t.json", '{"a": "b"}', "found an object"),
        ("t.json", '{"examples": null}', '"examples" is null'),
        ("t.json", '{"examples": [{"input": 1}, {}]}', "entry 1 of examples: input is the number 1"),
        ("t.json", '[\n{"input": "a", "output": "b"},\n\n null]', "t.json, line 4, entry 2: expected an object"),
        ("t.jsonl", jsonl(ROWS[0], {"question": "a", "answer": "b"}), "line 2: no key 'input'; found keys: question"),
        ("t.jsonl", jsonl(ROWS[0], {"input": "a"}), "line 2: no key 'output'; found keys: input"),
        (
            "t.jsonl",
            jsonl(ROWS[0], {"input": "a", "output": 3}),
            "line 2: output is the number 3, expected a text; quote",
        ),
        (
            "t.jsonl",
            jsonl({"input": "a", "output": True}),
            'output is the value true, expected a text; quote it: "true"',
        ),
        ("t.jsonl", jsonl({"input": None, "output": "a"}), "line 1: input is null"),
        ("t.jsonl", jsonl({"input": ["a"], "output": "a"}), "line 1: input is a list"),
        ("t.jsonl", jsonl(ROWS[0], {"input": " ", "output": "a"}), "line 2: input is empty"),
        ("t.jsonl", '{"input": "a\\ud83d", "output": "b"}\n', "line 1: input holds half of a surrogate pair"),
        ("t.jsonl", '{"input": NaN, "output": "a"}', "input is the number nan"),
        (
            "t.jsonl",
            jsonl({"input": "a", "label": 2, "choices": ["x", "y"]}),
            "label 2 is out of range; 2 choices allow",
        ),
        ("t.jsonl", jsonl({"input": "a", "label": -1, "choices": ["x", "y"]}), "label -1 is out of range"),
        ("t.jsonl", jsonl({"input": "a", "label": True, "choices": ["x", "y"]}), "label is the value true"),
        ("t.jsonl", jsonl({"input": "a", "label": "x", "choices": ["x", "y"]}), "label is 'x'; expected the index"),
        ("t.jsonl", jsonl({"input": "a", "label": 0}), "has a label but no choices"),
        ("t.jsonl", jsonl({"input": "a", "output": "z", "choices": ["x", "y"]}), "'z' is none of the choices"),
        ("t.jsonl", jsonl({"input": "a", "output": "x", "label": 1, "choices": ["x", "y"]}), "label 1 means 'y'"),
        ("t.jsonl", jsonl({"input": "a", "output": "x", "choices": "x"}), "choices has 1 entries"),
        ("t.jsonl", jsonl({"input": "a", "output": "x", "choices": 5}), "choices is the number 5"),
        ("t.jsonl", jsonl({"input": "a", "output": "x", "choices": ["x", 5]}), "choices[1] is the number 5"),
        ("t.csv", 'input,output,choices\na,b,"[b, c]"\n', "line 2: choices is no JSON list"),
        ("t.csv", "input,output,input\na,b,c\n", "column 'input' occurs twice"),
        ("t.csv", 'input,output\n"a\nb",c\nd,e,f\n', "t.csv, line 4: 3 fields, but the header has 2"),
        ("t.csv", 'input,output\na,b\nc,"d\n', "t.csv, line 3: not valid CSV"),
        ("t.csv", "hot,cold\nup,down\n", "line 2: no key 'input'; found keys: hot, cold"),
        ("t.csv", b"input,output\na,b\nc,\xe9\n", "t.csv, line 3: not UTF-8 at byte 19"),
        ("t.jsonl", "[]".encode("utf-16"), "line 1: not UTF-8 at byte 0"),
    ],
)
def test_bad_files_are_one_line_with_place_and_cure(write, name, content, message):
    fails(write(name, content), message)


def test_missing_files_and_folders(tmp_path, write):
    fails(tmp_path / "nothing.json", "no such file")
    fails(str(tmp_path / "nothing"), "no such file")
    fails(tmp_path, "a task folder needs train.jsonl")
    write("index.json", "[]")
    write("task/train.jsonl", jsonl(*ROWS))
    with pytest.raises(UserError, match=r"index\.json: expected an object"):
        load_task(tmp_path / "task")


def test_conflicts_name_both_lines(write):
    rows = [{"input": "a", "output": o, "choices": ["x", "y"]} for o in "xxy"]
    fails(write("t.jsonl", jsonl(*rows)), "line 3: input 'a' has output 'y', but 'x' at")
    path = write("open.csv", "input,output\nhot,cold\nup,down\nhot,cool\n")
    with pytest.warns(UserWarning, match=r"dropped 1 of 3 .*line 4: .*'hot' has output 'cool', but 'cold' at .*line 2"):
        task = load_task(path)
    assert task.examples[0] == Example("hot", "cold")


def test_folder_reads_its_index_from_itself_or_its_parent(tmp_path, write):
    write("index.json", json.dumps({"task": {"instruction": "Say so.", "answer_prefix": "Label:", "licence": "MIT"}}))
    write("task/train.jsonl", jsonl(*ROWS, {"input": "in", "output": "out"}))
    write("task/test.jsonl", jsonl({"input": "in", "output": "out"}, {"input": "left", "output": "right"}))
    task = load_task(tmp_path / "task")
    assert (task.name, task.instruction, task.answer_prefix, task.licence) == ("task", "Say so.", "Label:", "MIT")
    assert (task.input_prefix, len(task.examples), len(task.test_examples)) == ("", 2, 2)
    write("task/index.json", json.dumps({"instruction": "Other.", "input_prefix": "Text: "}))
    assert (load_task(tmp_path / "task").instruction, load_task(tmp_path / "task").input_prefix) == ("Other.", "Text: ")
    (tmp_path / "task" / "test.jsonl").unlink()
    assert load_task(tmp_path / "task").test_examples is None


@needs_data
def test_every_function_vectors_file_loads():
    paths = sorted((DATA / "function_vectors").glob("*.json"))
    assert paths
    for path in paths:
        rows = json.loads(path.read_text(encoding="utf-8"))
        distinct = {row["input"].strip() for row in rows}
        pairs = {(row["input"].strip(), row["output"].strip()) for row in rows}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert len(load_task(path).examples) == len(distinct)
        assert len(caught) == (len(pairs) > len(distinct))


@needs_data
def test_every_cross_task_folder_loads_with_its_index():
    index = json.loads((DATA / "cross_task" / "index.json").read_text(encoding="utf-8"))
    for name, entry in index.items():
        task = load_task(DATA / "cross_task" / name)
        assert (len(task.examples), len(task.test_examples)) == (entry["train"], entry["test"])
        assert (task.instruction, task.answer_prefix) == (entry["instruction"], entry["answer_prefix"])
        assert task.has_choices
