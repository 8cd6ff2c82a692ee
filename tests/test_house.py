"""The house: rooms on strict floors, one door a room, one way through them (docs/architecture.md)."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (
    ("laai.cli",),
    ("cast.transfers",),
    ("laai.compare",),
    ("laai.methods",),
    ("laai.learn",),
    ("cast.extraction",),
    ("cast.selection", "laai.evaluation"),
    ("laai.engine", "laai.runtime"),
    ("laai.steering", "laai.prompts"),
    ("laai.models",),
    ("laai.tasks",),
    ("laai.files", "laai.errors", "laai.vocabulary"),
)
"""Top first: a room imports from floors below its own; rooms on one floor do not see each other. The last is the
ground, three modules of which `files` may raise what `errors` defines."""
GROUND = FLOORS[-1]
FACES = ("laai", "laai.__main__", "cast")
"""They only hand out names of rooms, on first use."""
LIGHTNING = ("laai.runtime", "laai.learn", "laai.cli", "laai.evaluation", "cast.extraction.loop")
MOST_LINES, MOST_FUNCTION, MOST_FILES, MOST_FLOORS = 300, 50, 15, 6


class Import(NamedTuple):
    """`from module import names`, or `import module` (no names), and whether a function does it."""

    module: str
    names: tuple[str, ...]
    inside: bool
    line: int


@cache
def modules() -> dict[str, Path]:
    """All modules of the packages by name."""
    found = {}
    for package in ("laai", "cast"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> tuple[Import, ...]:
    """What a file imports of these packages, for type checkers too."""
    found = []
    inside = {id(n) for f in ast.walk(tree(path)) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            found.append(Import(node.module or "", tuple(a.name for a in node.names), id(node) in inside, node.lineno))
        elif isinstance(node, ast.Import):
            found += [Import(alias.name, (), id(node) in inside, node.lineno) for alias in node.names]
    return tuple(found)


def own(path: Path) -> list[Import]:
    return [i for i in imports(path) if i.module.partition(".")[0] in ("laai", "cast")]


def room_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def floor_of(room: str) -> int:
    (floor,) = [number for number, rooms in enumerate(FLOORS) if room in rooms]
    return floor


ROOMS = [room for floor in FLOORS[:-1] for room in floor]
INSIDE = {name: path for name, path in modules().items() if name not in FACES}


def doors(room: str) -> set[str]:
    """The names that a room's `__init__` lists in `__all__`."""
    for node in tree(modules()[room]).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    raise AssertionError(f"{room} has no __all__")


def test_every_module_is_in_a_room_and_every_room_is_on_a_floor():
    assert {room_of(name) for name in INSIDE} == {*ROOMS, *GROUND}
    assert len(FLOORS) <= 12


@pytest.mark.parametrize("name", INSIDE)
def test_imports_go_down(name):
    room = room_of(name)
    for one in own(INSIDE[name]):
        other = room_of(one.module)
        if other == room:
            continue
        down = floor_of(other) > floor_of(room) or (room, other) == ("laai.files", "laai.errors")
        assert down, f"{name}:{one.line} imports {one.module}, which is not on a floor below"


OUTSIDE = [*sorted((ROOT / "experiments").rglob("*.py")), ROOT / "train.py", *INSIDE.values()]


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_are_entered_by_their_doors(path):
    """From outside `from laai.<room> import name` alone; inside by file, as the door looks into all of them."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for one in own(path):
        place, room = f"{name}:{one.line}", room_of(one.module)
        if room == room_of(name) and name in INSIDE:
            assert one.module != room, f"{place} goes through its own door"
        elif one.module in ("laai", "cast"):
            assert name not in INSIDE, f"{place} imports the face {one.module}"
        elif room in GROUND:
            assert one.names, f"{place} imports {one.module} as a whole"
        else:
            assert one.module == room, f"{place} goes past the door of {room}: {one.module}"
            assert one.names, f"{place} imports {one.module} as a whole"
            assert set(one.names) <= doors(room), f"{place} takes {set(one.names) - doors(room)}, not in __all__"


@pytest.mark.parametrize("room", ROOMS)
def test_a_door_leads_somewhere(room):
    """All names of `__all__` are there, and somebody outside the room uses each: other rooms, scripts, faces, tests."""
    door = modules()[room]
    assert ast.get_docstring(tree(door)), f"{room} does not say what it is"
    assert doors(room) == {name for one in own(door) for name in one.names}
    users = [path for name, path in modules().items() if room_of(name) != room] + OUTSIDE[: -len(INSIDE)]
    users += [path for path in (ROOT / "tests").rglob("test_*.py") if path.name != Path(__file__).name]
    used = {name for path in users for one in own(path) if room_of(one.module) == room for name in one.names}
    faces = {
        name for name in doors(room) if any(f'"{name}": "{room}"' in modules()[f].read_text() for f in ("laai", "cast"))
    }
    assert doors(room) - used - faces == set()


@pytest.mark.parametrize("room", ROOMS)
def test_files_of_a_room_stand_on_few_floors_without_a_circle(room):
    files = {name: path for name, path in INSIDE.items() if room_of(name) == room and name != room}
    assert len(files) + 1 <= MOST_FILES
    graph = {name: {one.module for one in own(path) if one.module in files} for name, path in files.items()}
    height: dict[str, int] = {}
    for name in graphlib.TopologicalSorter(graph).static_order():  # a circle raises
        height[name] = 1 + max((height[other] for other in graph[name]), default=0)
    assert max(height.values(), default=0) <= MOST_FLOORS, height


@pytest.mark.parametrize("name", modules())
def test_imports_stand_on_top(name):
    """Only commands, which answer `--help` at once, and faces import our own modules when they run."""
    if name not in FACES and room_of(name) != "laai.cli":
        assert [one for one in own(modules()[name]) if one.inside] == []


@pytest.mark.parametrize("name", INSIDE)
def test_lightning_stays_where_runs_are_made(name):
    if not name.startswith(LIGHTNING):
        assert [one for one in imports(INSIDE[name]) if one.module.startswith(("lightning", "pytorch_lightning"))] == []


@pytest.mark.parametrize(
    "path", [*OUTSIDE, *sorted((ROOT / "tests").rglob("*.py"))], ids=lambda p: str(p.relative_to(ROOT))
)
def test_files_and_functions_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= MOST_FUNCTION, f"{node.name} has {lines} lines"


def test_tests_mirror_rooms():
    for package in ("laai", "cast"):
        folders = {
            f"{package}.{p.name}" for p in (ROOT / "tests" / package).iterdir() if p.is_dir() and p.name[0] != "_"
        }
        assert folders == {room for room in ROOMS if room.startswith(f"{package}.")}


def test_paths_that_are_named_exist():
    """In code, documentation and settings: what is moved takes its mentions along."""
    kinds = ("*.py", "*.md", "*.toml", "*.yaml")
    texts = [path for kind in kinds for path in ROOT.rglob(kind) if path.relative_to(ROOT).parts[0][0] != "."]
    named = re.compile(r"(?<![\w/.])(?:laai|cast|tests|experiments|docs|findings)/[\w/]+\.(?:py|md|json|yaml|png|sh)\b")
    found = {(str(p.relative_to(ROOT)), name) for p in texts for name in named.findall(p.read_text(encoding="utf-8"))}
    assert len(found) > 20
    assert {(place, name) for place, name in found if not (ROOT / name).exists()} == set()


def test_help_imports_nothing_heavy():
    code = (
        "import sys, laai.cli\n"
        "try: laai.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(str(sorted({'torch', 'transformers', 'lightning', 'numpy', 'datasets'} & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stderr.strip(), done.returncode) == ("[]", 1)
    assert "commands" in done.stdout
