"""The splice: gated blocks run before decoder layers that transformers built, attached by forward pre-hooks.

The decoder's classes, state-dict keys, attention implementation, cache and `generate` stay what they are, so one splice
serves every architecture. Outside `looking` the hooks return None, and the decoder is the base decoder.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from mmlm.cache import make_room
from mmlm.media import View

CACHES = ("past_key_values", "cache_params", "state")  # of most decoders, of Mamba, of RWKV

# What each splice looks at in this thread. Threads of one server share a model, and must not see each other's images.
_VIEWS: ContextVar[Mapping[int, View] | None] = ContextVar("mmlm_views", default=None)


class Splice:
    """Attaches to the decoder's `layers` numbered `at` the gated blocks of whatever view is looked at."""

    def __init__(self, decoder: nn.Module, layers: nn.ModuleList, at: list[int]) -> None:
        text = decoder.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]
        self.streams_first = hasattr(text, "altup_num_inputs")
        """Gemma 3n's residual streams lie along the first side of its hidden states [n, rows, T, D]."""
        self.start = _Start(self)
        self.handles = [decoder.register_forward_pre_hook(self.start, with_kwargs=True)]
        for block, layer in enumerate(at):
            self.handles.append(layers[layer].register_forward_pre_hook(_Look(self, block), with_kwargs=True))

    @property
    def view(self) -> View | None:
        """What is looked at now; None: nothing."""
        return (_VIEWS.get() or {}).get(id(self))

    @property
    def all_see(self) -> bool:
        """Is an image shown in every row?"""
        return self.view is not None and self.view.all_see

    @contextmanager
    def looking(self, view: View | None) -> Iterator[None]:
        """Within it the decoder sees what the view shows."""
        if view is None:
            yield
            return
        token = _VIEWS.set({**(_VIEWS.get() or {}), id(self): view})
        try:
            yield
        finally:
            _VIEWS.reset(token)

    def detach(self) -> None:
        """Removes every hook: the decoder is as it was loaded."""
        for handle in self.handles:
            handle.remove()


class _Start:
    """Before the decoder: which tokens are these? And its cache gets room to grow."""

    def __init__(self, splice: Splice) -> None:
        self.splice = splice

    def __call__(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = next((kwargs[name] for name in CACHES if kwargs.get(name) is not None), None)
        make_room(cache)
        if view := self.splice.view:
            tokens = args[0] if args else kwargs.get("input_ids")
            tokens = kwargs["inputs_embeds"] if tokens is None else tokens
            view.move(tokens_seen(cache), tokens.shape[1], tokens.shape[0])


class _Look:
    """Before a decoder layer: the gated block."""

    def __init__(self, splice: Splice, block: int) -> None:
        self.splice, self.block = splice, block

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        view = self.splice.view
        if view is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        if self.splice.streams_first:
            hidden = view.look(self.block, hidden.movedim(0, 2)).movedim(2, 0)
        else:
            hidden = view.look(self.block, hidden)
        return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})


def tokens_seen(cache: Any) -> int | Tensor | None:
    """How many tokens a decoder's cache has seen; None: some, and it cannot tell how many (recurrent states alone)."""
    if cache is None:
        return 0
    layers = getattr(cache, "layers", [])
    if isinstance(cache, Cache) and layers and not any(isinstance(layer, CacheLayerMixin) for layer in layers):
        return None if cache.has_previous_state() else 0
    return cache.get_seq_length() if hasattr(cache, "get_seq_length") else None
