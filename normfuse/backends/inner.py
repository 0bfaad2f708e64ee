"""What runs a graph in the end: Inductor with the user's mode and options, or a plain interpreter."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from torch.fx import GraphModule

from normfuse.errors import OptionError
from normfuse.inductor_compat import vectors_of_processor
from normfuse.options import Options
from normfuse.torch_compat import autocast_off

__all__ = ["check_inductor", "run_inner", "unused_settings", "without_autocast"]

Compiled = Callable[..., Any]


def check_inductor(options: Options, mode: str | None) -> dict[str, Any]:
    """Inductor's settings for a mode and options, checked.

    Raises:
        OptionError: for a mode or option that Inductor does not have, naming the nearest one, and for
            freezing that is asked for twice.
    """
    if mode is not None and options.mode is not None and mode != options.mode:
        raise OptionError(f"mode={mode!r} and normfuse.mode={options.mode!r} disagree; give one of them")
    patches = _mode_settings(mode or options.mode)
    if options.inductor:
        patches |= _checked_settings(options.inductor)
    _check_effect(options, patches)
    return patches


def _check_effect(options: Options, settings: Mapping[str, Any]) -> None:
    if options.freeze == "on" and settings.get("freezing"):
        raise OptionError("normfuse.freeze='on' and Inductor's freezing exclude each other; give one of them")


def unused_settings(options: Options, settings: Mapping[str, Any]) -> list[str]:
    """What a person should know of Inductor's settings where something else runs the graph."""
    if not settings or options.inner == "inductor":
        return []
    return [f"normfuse.inner={options.inner!r} leaves out Inductor: {', '.join(settings)} has no effect"]


def _mode_settings(mode: str | None) -> dict[str, Any]:
    if mode is None or mode == "default":
        return {}
    import torch._inductor

    known = torch._inductor.list_mode_options()
    if mode not in known:
        raise OptionError(f"unknown mode {mode!r}{_nearest(mode, list(known))}")
    return dict(torch._inductor.list_mode_options(mode))


def _checked_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    import torch._inductor

    known = torch._inductor.list_options()
    settings = {key.replace("-", "_"): value for key, value in given.items()}
    for key in settings:
        if key not in known:
            raise OptionError(f"unknown option {key!r}{_nearest(key, [*known, *_own()])}")
    return settings


def _own() -> list[str]:
    from dataclasses import fields

    return [f"normfuse.{f.name}" for f in fields(Options) if f.name != "inductor"]


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else "; torch._inductor.list_options() shows what there is"


def without_autocast(compiled: Compiled) -> Compiled:
    """``compiled``, called with autocast off: its graph says the casts that autocast would make."""

    @functools.wraps(compiled)
    def call(*args: Any) -> Any:
        with autocast_off():
            return compiled(*args)

    return call


def run_inner(
    gm: GraphModule, example_inputs: Sequence[Any], options: Options, settings: Mapping[str, Any]
) -> Compiled:
    """Compile a graph with what the user chose; Inductor owns ``gm`` from then on."""
    if options.inner == "eager":
        return gm
    if options.inner == "aot_eager":
        from torch._dynamo.backends.debugging import aot_eager

        plain: Compiled = aot_eager(gm, list(example_inputs))
        return plain
    from torch._inductor.compile_fx import compile_fx

    patches = {**vectors_of_processor(example_inputs), **settings}
    compiled: Any = compile_fx(gm, list(example_inputs), config_patches=patches)
    return cast(Compiled, compiled)
