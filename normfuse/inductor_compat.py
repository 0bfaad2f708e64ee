"""The private parts of Inductor that normfuse stands on beside its backend's entry, in one place.

Each import waits until it is needed, since importing Inductor takes seconds.
"""

from __future__ import annotations

import ctypes
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from unittest import mock

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

__all__ = [
    "cache_folder",
    "compile_package",
    "compiled_alone",
    "compiled_library",
    "freezes_by_itself",
    "is_packable",
    "mark_constant",
    "modules_let_go",
    "quiet_choices",
    "register_product",
    "traced_with",
    "vectors_of_processor",
    "was_imported",
]


def was_imported() -> bool:
    """Whether something was compiled in this process, so that Inductor costs no time to import."""
    return "torch._inductor.codecache" in sys.modules


def freezes_by_itself() -> bool:
    """Whether Inductor was told to freeze the weights of every graph, whose changes it does not see."""
    config = sys.modules.get("torch._inductor.config")
    return bool(getattr(config, "freezing", False))


def compiled_library(source: str) -> ctypes.CDLL:
    """C++ code, compiled once on a machine by the compiler that Inductor uses; its errors are raised."""
    from torch._inductor.codecache import CppCodeCache

    library: ctypes.CDLL = CppCodeCache.load(source)
    return library


def compiled_alone(
    gm: GraphModule, inputs: Sequence[torch.Tensor], mode: str | None, settings: Mapping[str, Any]
) -> Callable[..., Any]:
    """A graph compiled by itself, whatever is being compiled just now, and never as a CUDA graph.

    Gradients are compiled at once: at their first call Dynamo's log takes them for those of the outer graph.
    """
    from torch._functorch import config
    from torch._inductor import list_mode_options
    from torch._inductor.compile_fx import compile_fx

    chosen = list_mode_options(mode) if mode not in (None, "default") else {}
    with torch._guards.tracing(None), config.patch(force_non_lazy_backward_lowering=True):
        compiled: Any = compile_fx(
            gm, list(inputs), config_patches={**chosen, **settings, "triton.cudagraphs": False}
        )
    return cast(Callable[..., Any], compiled)


def vectors_of_processor(inputs: Iterable[object]) -> dict[str, int]:
    """Inductor's setting for the bits of a vector, as it finds them by itself on this processor.

    Code that Inductor generates depends on them, and the key of its cache on disk does not, but for this
    setting. What was generated for AVX-512 and is found with ``ATEN_CPU_CAPABILITY=avx2``, or by a processor
    that has no AVX-512, is compiled for AVX2 and leaves half of each vector unwritten, without an error.
    """
    if not any(isinstance(value, torch.Tensor) and value.device.type == "cpu" for value in inputs):
        return {}
    from torch._inductor import config, cpu_vec_isa

    isa = cpu_vec_isa.pick_vec_isa()
    alike = [one for one in cpu_vec_isa.valid_vec_isa_list() if one.bit_width() == isa.bit_width()]
    is_found_by_width = isa == next(iter(alike), cpu_vec_isa.invalid_vec_isa)
    return {"cpp.simdlen": isa.bit_width()} if config.cpp.simdlen is None and is_found_by_width else {}


def compile_package(program: ExportedProgram, path: Path) -> None:
    """A program compiled ahead of time, as a package."""
    from torch._inductor import aoti_compile_and_package

    aoti_compile_and_package(program, package_path=str(path))


def cache_folder() -> Path:
    """Where Inductor keeps what it has compiled and measured."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir())


def register_product(applies: Callable[[Any], bool], replace: Callable[..., None]) -> None:
    """Have ``replace`` called with each product of a frozen graph that ``applies``, before it is packed."""
    from torch._inductor.fx_passes.freezing_patterns import register_freezing_graph_pattern
    from torch._inductor.pattern_matcher import Arg, CallFunction, KeywordArg

    factors: dict[str, Any] = {"beta": KeywordArg("beta"), "alpha": KeywordArg("alpha")}
    addmm = CallFunction(torch.ops.aten.addmm.default, Arg(), Arg(), Arg(), **factors)
    for pattern in (addmm, CallFunction(torch.ops.aten.mm.default, Arg(), Arg())):
        register_freezing_graph_pattern(pattern, extra_check=applies)(replace)


def mark_constant(value: torch.Tensor) -> None:
    """Have Inductor's cache on disk find a constant of a frozen graph in the graph, and not keep a copy."""
    from torch._inductor.freezing_utils import maybe_set_is_frozen_param

    maybe_set_is_frozen_param(value)


def is_packable(match: Any) -> bool:
    """Whether Inductor would pack the weight of a product for a library."""
    from torch._inductor.fx_passes.mkldnn_fusion import _is_packable_linear

    return bool(_is_packable_linear(match))


@contextmanager
def modules_let_go() -> Iterator[list[torch.Tensor]]:
    """The modules of code that Inductor makes within it, and constants in them, go with what calls the code.

    Inductor lists all of them, to remove their files on request, and so keeps them as long as the process.
    The list that is yielded has those constants afterwards.
    """
    from torch._inductor.codecache import PyCodeCache

    before = {id(module) for module in PyCodeCache.modules}
    constants: list[torch.Tensor] = []
    try:
        yield constants
    finally:
        for module in [m for m in PyCodeCache.modules if id(m) not in before]:
            constants += [value for value in vars(module).values() if isinstance(value, torch.Tensor)]
            PyCodeCache.modules.remove(module)
            if sys.modules.get(module.__name__) is module:
                del sys.modules[module.__name__]


@contextmanager
def traced_with(fake_mode: Any) -> Iterator[None]:
    """Within it, a graph is compiled as while Dynamo traced it, with the same stand-ins for tensors."""
    with torch._guards.tracing(torch._guards.TracingContext(fake_mode)):
        yield


@contextmanager
def quiet_choices() -> Iterator[None]:
    """What Inductor prints of the kernels that it chooses among is not printed."""
    import torch._inductor.select_algorithm as selection

    silent = mock.patch.object(selection, "_log_autotune_choices_stats", create=True)
    with warnings.catch_warnings(), silent:
        warnings.filterwarnings("ignore", "TypedStorage is deprecated")
        yield
