#!/usr/bin/env bash
# torch.compile (torch 2.13.0, Python 3.11, CPU, backend "eager") keeps what a compiled function writes to attributes of a
# plain object or of `threading.local()`, and loses, without an error or a warning and under fullgraph=True too, what it
# writes to an instance of a *subclass* of `threading.local`. The value that the function returns is right, so that only
# whoever reads the attribute later, a second hook or another graph, sees the old one.
#
# One would expect a subclass to behave as its base, or fullgraph=True to raise. State of hooks that is kept for each
# thread must live in an object that the thread-local one points to, and not in attributes of the subclass itself.
#
# Seen:
#   plain object: returned [3.0, 5.0, 7.0], kept 6.0
#   threading.local: returned [3.0, 5.0, 7.0], kept 6.0
#   subclass of threading.local: returned [3.0, 5.0, 7.0], kept 0.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" -W ignore - <<'PY'
import threading

import torch


class Plain:
    """An object of no special kind."""


class Subclass(threading.local):
    """Nothing of its own."""


found = {}
for name, make in (
    ("plain object", Plain),
    ("threading.local", threading.local),
    ("subclass of threading.local", Subclass),
):
    torch._dynamo.reset()
    store = make()
    store.value = torch.zeros(1)

    def double(x):
        store.value = x * 2
        return store.value + 1

    compiled = torch.compile(double, backend="eager", fullgraph=True)
    returned = [compiled(torch.full((1,), k)).item() for k in (1.0, 2.0, 3.0)]
    found[name] = (returned, store.value.item())
    print(f"{name}: returned {returned}, kept {store.value.item()}")
print(f"torch {torch.__version__}")
right = [3.0, 5.0, 7.0]
assert found["plain object"] == found["threading.local"] == (right, 6.0), "the others changed"
assert found["subclass of threading.local"] == (right, 0.0), "the subclass changed"
PY
