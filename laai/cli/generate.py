"""`laai generate`: a prompt continued with and without an intervention."""

from __future__ import annotations

import sys
from typing import Any

from laai.cli.options import Parsers, add_columns, add_command, add_model_options, columns_of, load_both, read_vectors
from laai.errors import UserError
from laai.vocabulary import STYLES


def add_generate(commands: Parsers) -> None:
    """Add the command."""
    parser = add_command(
        commands, "generate", _run, "continue a prompt with and without an intervention, greedily",
        '  laai generate --intervention antonym.safetensors --task antonym "hot"\n'
        '  laai generate --intervention antonym.safetensors --scale 0.5 "Q: hot\\nA:"',
    )  # fmt: skip
    parser.add_argument("prompt", help=r"the prompt (\n is a new line), or with --task the input alone")
    parser.add_argument("--intervention", required=True, help="a file that train.py, laai extract or save() wrote")
    parser.add_argument("--task", help="write the prompt as this task's queries are written")
    parser.add_argument("--style", choices=STYLES, help="prompt style (default: the one the file was made with)")
    parser.add_argument("--scale", type=float, default=1.0, help="strength (default: 1)")
    parser.add_argument("--max_new_tokens", type=int, default=20, help="length of the continuation (default: 20)")
    add_columns(parser)
    add_model_options(parser, default=None)


def _run(options: Any) -> None:
    from laai.engine import Engine
    from laai.prompts import Template
    from laai.tasks import Example, Task, load_task

    if options.max_new_tokens < 1:
        raise UserError(f"max_new_tokens must be at least 1, not {options.max_new_tokens}")
    model, intervention = load_both(options, read_vectors(options))
    if options.task:
        template = Template(model.tokenizer, load_task(options.task, columns=columns_of(options)), options.style)
        prompt = template.encode(options.prompt)
    else:
        bare = Task("prompt", (Example("a", "b"), Example("c", "d")), input_prefix="", answer_prefix="")
        template, text = Template(model.tokenizer, bare, options.style), options.prompt.replace("\\n", "\n")
        prompt = template.encode_text(text) if options.style == "plain" else template.encode(text)
    engine = Engine(model)
    plain = engine.generate([prompt], options.max_new_tokens)[0]
    with intervention.on(model):
        steered = engine.generate([prompt], options.max_new_tokens)[0]
    sys.stdout.write(f"without: {plain.strip()!r}\nwith:    {steered.strip()!r}\n")
