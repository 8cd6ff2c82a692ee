"""Hooks that steer or record a transformers decoder, right under padding, caches, beams and recomputation.

A pre-hook on the decoder works out once per forward which tokens are steered (`laai.steering.positions`); hooks on the
layers are pure functions of (activation, that answer). `generate` and learning use the same hooks.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from laai.errors import UserError
from laai.models import Decoder, LanguageModel, decoder_of, transformer, unwrap
from laai.steering.positions import PromptColumns, Where, pad_left, past_length, where_in_rows
from laai.vocabulary import Positions, Site

Key = tuple[Site, int]
"""A site and a layer."""

_NO_DECODER = "a steered layer ran without its decoder, so the steered tokens are not known"

Edit = Callable[[Tensor, Where], Tensor]


def steer(hidden: Tensor, vector: Tensor, where: Where, preserve_norm: bool = False) -> Tensor:
    """Add `vector` to the steered tokens of an activation.

    Args:
        hidden: (batch, tokens, width), any float dtype; never written to.
        vector: (width,); (batch, 1, width), one for each row; or (batch, tokens, width), one for each token. fp32, cast
            to the activation's dtype before it is added.
        where: which tokens; all others come back bitwise as they were.
        preserve_norm: rescale each steered token to the norm it had.
    """
    steered = hidden + vector.to(device=hidden.device, dtype=hidden.dtype)
    if preserve_norm:
        before, after = (torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True) for x in (hidden, steered))
        steered = steered * (before / after.clamp_min(torch.finfo(after.dtype).tiny)).to(hidden.dtype)
    return steered if where is True else torch.where(torch.as_tensor(where, device=hidden.device), steered, hidden)


@dataclass
class _Call:
    """What one thread knows of its `generate` and forward."""

    columns: PromptColumns | None = None
    where: Where | None = None
    to_recompute: list[Where] = field(default_factory=list)
    recomputing: bool = False


class _Calls(threading.local):
    """The `_Call` of each thread. torch.compile follows writes to this plain object, not to a thread-local one."""

    def __init__(self, everyone: dict[int, _Call]) -> None:
        self.call, number = _Call(), threading.get_ident()
        if number in everyone and (ended := everyone[number]).to_recompute:  # a thread that had this number before
            everyone[-id(ended)] = ended
        everyone[number] = self.call


class Attachment:
    """Hooks of one set of edits on one model, until `detach` or the end of a `with`. Threads may share the model.

    Args:
        model: the language model, or a transformers one, PEFT-wrapped or not.
        edits: a function (activation, where) -> activation for each steered (site, layer).
        positions: which tokens are steered.

    Raises:
        UserError: the model is compiled already (its graph would ignore the hooks), cannot generate, or has virtual
            prompt tokens (they shift every column).
    """

    def __init__(self, model: nn.Module | LanguageModel, edits: Mapping[Key, Edit], positions: Positions) -> None:
        self.positions = positions
        llm = transformer(model)
        self._model = unwrap(llm)
        if any(is_compiled(module) for module in (llm, *self._model.modules())):
            raise UserError(
                "this model was compiled before the vectors were attached; attach first, then torch.compile"
            )
        if getattr(getattr(llm, "active_peft_config", None), "is_prompt_learning", False):
            raise UserError("this PEFT adapter puts virtual tokens before the prompt, so steered tokens cannot be told")
        if not callable(getattr(self._model, "generate", None)):
            found = f"{type(self._model).__name__}, which cannot generate"
            raise UserError(f"expected a causal language model, found {found}")
        decoder = decoder_of(model)
        self._signature = inspect.signature(decoder.module.forward)
        self._everyone: dict[int, _Call] = {}
        self._calls = _Calls(self._everyone)
        with ExitStack() as undo:  # of what is done before an error
            hook = decoder.module.register_forward_pre_hook(self._locate, prepend=True, with_kwargs=True)
            undo.callback(hook.remove)
            for (site, index), edit in edits.items():
                # First: before the hooks by which transformers records `output_hidden_states`.
                undo.callback(_hook(decoder, site, index, partial(self._edited, edit), first=True).remove)
            before: Any = self._model.generate
            undo.callback(self._restore, self._model.__dict__.get("generate"))
            self._generate = self._model.__dict__["generate"] = self._wrap(before)
            self._model.__dict__.setdefault("_attachments", []).append(self)
            undo.callback(self._model.__dict__["_attachments"].remove, self)
            self._undo = undo.pop_all()

    def _restore(self, generate: Any) -> None:
        self._model.__dict__.pop("generate", None)
        if generate is not None:
            self._model.__dict__["generate"] = generate

    def detach(self) -> None:
        """Remove these hooks and no others; the model is bitwise as before."""
        if self._model.__dict__.get("generate") is not self._generate:
            raise RuntimeError("interventions must be detached in reverse order of attaching")
        self._undo.close()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _edited(self, edit: Edit, value: Any) -> Any:
        where = self._where_now(_first(value))
        return None if where is False else _replace_hidden(value, edit(_hidden(value, where), where))

    def _where_now(self, hidden: Any) -> Where:
        """This forward's answer; while activation checkpointing recomputes, that of the forward it recomputes."""
        call = self._calls.call
        # A graph break inside a hook makes torch.compile drop the hook in silence, and this private call is one.
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            # The CPU's backward runs in the thread of its forward; other devices have a thread for those of all.
            own = call.to_recompute and isinstance(hidden, Tensor) and hidden.device.type == "cpu"
            return _recomputed([call] if own else list(self._everyone.values()))
        if call.where is None:
            raise RuntimeError(_NO_DECODER)
        return call.where

    def _locate(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before each forward of the decoder: decide which of its tokens are steered."""
        call = self._signature.bind_partial(*args, **kwargs).arguments
        call |= call.pop("kwargs", {})
        tokens = call.get("input_ids") if call.get("input_ids") is not None else call.get("inputs_embeds")
        if not isinstance(tokens, Tensor):
            raise UserError("a steered forward needs input_ids or inputs_embeds")
        mine = self._calls.call
        if self.positions == "all":
            mine.where = True
        elif mine.columns is not None:
            mine.where = mine.columns.where(tokens.shape[1], past_length(call), self.positions, tokens.device)
        else:
            mine.where = where_in_rows(tokens, call, self.positions)
        if torch.is_grad_enabled():
            if mine.recomputing:
                mine.to_recompute, mine.recomputing = [], False
            if len(mine.to_recompute) < 2:  # two different ones are one too many already
                mine.to_recompute = _distinct([*mine.to_recompute, mine.where])

    def _wrap(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        takes_compile_flag = "generation_config" in inspect.signature(inner).parameters

        def generate(inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
            """`generate` of transformers, steered: notes where the prompt ends, and moves padding to the left."""
            if inputs is not None:
                kwargs["inputs"] = inputs
            name = next((k for k in ("inputs", "input_ids", "inputs_embeds") if kwargs.get(k) is not None), None)
            if name is None or not isinstance(kwargs[name], Tensor):
                raise UserError("steered generate needs input_ids or inputs_embeds as a tensor")
            mask, width = kwargs.get("attention_mask"), kwargs[name].shape[1]
            if isinstance(mask, Tensor) and mask.dim() == 2:
                width = mask.shape[1]  # wider than the input where only what follows a cache is passed
                if not past_length(kwargs):
                    kwargs[name], kwargs["attention_mask"] = pad_left(kwargs[name], mask)
                elif not bool(mask[:, -1].all()):
                    raise UserError("prompts padded on the right cannot continue a cache; pad them on the left")
            if takes_compile_flag:
                kwargs.setdefault("disable_compile", True)  # a graph compiled earlier knows nothing of these hooks
            mine = self._calls.call
            outer, mine.columns = mine.columns, PromptColumns(width)
            try:
                return inner(kwargs.pop("inputs", None), *args, **kwargs)
            finally:
                mine.columns = outer

        return generate


def attachments(model: nn.Module | LanguageModel) -> tuple[Attachment, ...]:
    """What is hooked into a model now, in order."""
    return tuple(vars(unwrap(transformer(model))).get("_attachments", ()))


@contextmanager
def record_last_token(
    model: nn.Module | LanguageModel, site: Site, layers: Sequence[int]
) -> Iterator[dict[int, Tensor]]:
    """Record the activation at `site` of the last column while the context is open.

    Yields a dict that each forward fills with layer -> (batch, width), in the activation's dtype. Prompts must be
    padded on the left, so that the last column holds each row's last prompt token.
    """
    decoder = decoder_of(model)
    seen: dict[int, Tensor] = {}

    def keep(index: int, value: Any) -> None:
        seen[index] = _hidden(value)[:, -1].detach()

    with ExitStack() as undo:
        for index in layers:
            undo.callback(_hook(decoder, site, index, partial(keep, index)).remove)
        yield seen


def _hook(decoder: Decoder, site: Site, index: int, see: Callable[[Any], Any], first: bool = False) -> RemovableHandle:
    """Show what is at a site to `see`, which may return something in its place; raises UserError where there is none.

    That is a layer's output, or the arguments of its output projection.
    """
    decoder.width(site, index)
    layer = decoder.layer(index)
    if site == "residual":
        return layer.module.register_forward_hook(lambda _, __, output: see(output), prepend=first)
    assert layer.heads is not None
    return layer.heads.projection.register_forward_pre_hook(lambda _, args: see(args), prepend=first)


def _distinct(answers: Sequence[Where]) -> list[Where]:
    found: list[Where] = []
    for a in answers:
        if not any(torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b for b in found):
            found.append(a)
    return found


def _recomputed(calls: Sequence[_Call]) -> Where:
    """The answer of the forward that is being recomputed, which ran in one of these threads."""
    for call in calls:
        call.recomputing = True
    found = _distinct([where for call in calls for where in call.to_recompute])
    if not found:
        raise RuntimeError(_NO_DECODER)
    if len(found) > 1:
        raise RuntimeError(
            "activation checkpointing cannot tell which of several steered forwards it recomputes; call "
            "backward after each forward, and run a forward that has none under no_grad"
        )
    return found[0]


def is_compiled(module: nn.Module) -> bool:
    """Whether a graph was, or will be, made of this module, to which hooks and forwards changed later mean nothing."""
    return getattr(module, "_compiled_call_impl", None) is not None or "_orig_mod" in module._modules


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple | list) else value


def _hidden(value: Any, where: Where = True) -> Tensor:
    """The activation in a layer's output or a module's arguments: the value itself, or the first of its items.

    Raises:
        UserError: it is not laid out as (batch, tokens, width), so that `where` could fall on the wrong tokens.
    """
    hidden = _first(value)
    if isinstance(hidden, Tensor) and hidden.dim() == 3:
        masked = where.shape[:2] if isinstance(where, Tensor) else hidden.shape[:2]
        if tuple(masked) in (tuple(hidden.shape[:2]), (1, hidden.shape[1])):
            return hidden
    found = tuple(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
    raise UserError(f"cannot steer this architecture: expected a (batch, tokens, width) activation, found {found}")


def _replace_hidden(output: Any, hidden: Tensor) -> Any:
    if isinstance(output, tuple):
        return (hidden, *output[1:])
    return [hidden, *output[1:]] if isinstance(output, list) else hidden
