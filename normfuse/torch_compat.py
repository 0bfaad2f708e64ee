"""The private parts of PyTorch that normfuse stands on, in one place.

A new PyTorch release is this file's work. Nothing here imports Dynamo or Inductor; what needs
them lives in ``normfuse.backends``.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from typing import Any, NamedTuple

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch._subclasses.schema_check_mode import SchemaCheckMode
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    _get_current_dispatch_mode,
    is_traceable_wrapper_subclass,
)
from torch.utils._pytree import tree_leaves

__all__ = [
    "SIZES_FROM_DATA",
    "FakeTensor",
    "FakeTensorMode",
    "PreDispatchMode",
    "TensorLayout",
    "after_collectives",
    "after_preserved_writes",
    "asking",
    "autocast_off",
    "computes_now",
    "decomposes",
    "enable_python_dispatcher",
    "fakes_called",
    "graph_module",
    "guards_may_be_skipped",
    "guards_on_sizes",
    "is_inside_transform",
    "is_traceable_wrapper_subclass",
    "is_transformed",
    "keep_guards",
    "number_functions",
    "outside_tracing",
    "schema_major",
    "size_functions",
    "size_hint",
    "statically_known_true",
    "storage_id",
    "storage_is_abandoned",
    "tensor_layout",
    "unnoticed",
    "wrap_triton",
]


class PreDispatchMode(SchemaCheckMode):
    """A dispatch mode that is asked before autocast and autograd; subclasses say what it does.

    PyTorch admits three classes there by name, of which this base is the one without behaviour of
    its own outside of ``__torch_dispatch__``.
    """

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self, torch._C.DispatchKey.PreDispatch)


def is_inside_transform() -> bool:
    """Whether a call is made inside of a ``torch.func`` transform or differentiated forward.

    Dynamo knows of the latter while it traces, and would answer yes to the former everywhere.
    """
    if torch.autograd.forward_ad._current_level >= 0:
        return True
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None


def autocast_off() -> AbstractContextManager[None]:
    """No operator runs in other types than its operands have, on any device."""
    guard: AbstractContextManager[None] = torch._C._DisableAutocast()
    return guard


def fakes_called() -> AbstractContextManager[Any]:
    """In it operators are called with fake values whose sizes may be symbols.

    Before 2.12 those that are made of other operators take them only by their Python kernels.
    """
    is_old = torch.__version__ < torch.torch_version.TorchVersion("2.12")
    return enable_python_dispatcher() if is_old else nullcontext()


def computes_now(value: torch.Tensor) -> bool:
    """Whether an operator on a tensor is run, and neither traced nor watched by a dispatch mode."""
    is_plain = type(value) in (torch.Tensor, torch.nn.Parameter) and not torch._is_functional_tensor(value)
    return is_plain and _get_current_dispatch_mode() is None and not torch.compiler.is_compiling()


def wrap_triton(kernel: Any) -> Any:
    """PyTorch's function of this name, by which it finds the kernels of an operator in the code.

    A kernel that is interpreted stays as it is, since 2.11 takes none.
    """
    from triton.runtime.jit import JITFunction

    return torch.library.wrap_triton(kernel) if isinstance(kernel, JITFunction) else kernel


def decomposes(target: OpOverload) -> bool:
    """Whether an operator is made of other operators, and has no kernel of its own."""
    composite = "CompositeImplicitAutograd"
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), composite))


@contextmanager
def unnoticed() -> Iterator[None]:
    """What autograd saves of fake values is nothing to the caller's hooks, as those of checkpointing."""
    with ExitStack() as stack:
        with suppress(RuntimeError):  # inside of torch.func's transformations, which allow no hooks
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t))
        yield


def graph_module(attributes: Any, graph: Graph) -> GraphModule:
    """A module over a graph, whose Python code is generated when somebody calls it and not before."""
    return _LazyGraphModule(attributes, graph)


def schema_major() -> int:
    """The version of program files that this PyTorch reads."""
    from torch._export.serde.schema import SCHEMA_VERSION

    return int(SCHEMA_VERSION[0])


def size_functions() -> frozenset[str]:
    """Functions of symbolic sizes, by the names that program files use."""
    from torch.utils._sympy import functions

    held = vars(functions).items()
    return frozenset(n for n, f in held if isinstance(f, type) and f.__module__ == functions.__name__)


def number_functions() -> frozenset[str]:
    """Functions of ``torch`` that compute numbers from numbers, symbolic or not, which guards call."""
    from torch.fx.experimental.sym_node import METHOD_TO_OPERATOR

    named = {f.__name__ for f in METHOD_TO_OPERATOR.values() if f.__module__ == "torch"}
    return frozenset(named | {"sym_int", "sym_sqrt", "sym_sum"})


@contextmanager
def outside_tracing() -> Iterator[None]:
    """Run real kernels, whatever fake or tracing mode the caller is in, and keep the results usable.

    Tensors made under inference mode carry no version counter, so that mode is left as well. Captured
    graphs name the casts that autocast made, so it makes none here.
    """
    with _disable_current_modes(), torch.inference_mode(False), torch.no_grad(), autocast_off():
        yield


def guards_on_sizes(fake_mode: FakeTensorMode) -> int:
    """How many guards on open sizes a graph has so far."""
    return 0 if fake_mode.shape_env is None else len(fake_mode.shape_env.guards)


def statically_known_true(condition: Any) -> bool:
    """Whether a condition on sizes holds whatever the sizes are, without a guard."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true as known

    return bool(known(condition))


@contextmanager
def asking() -> Iterator[None]:
    """Make fake tensors here and run operators on them to see what they give: no gradients, no casts."""
    with torch.no_grad(), autocast_off(), _own_mode():
        yield


#: What an operator raises on fake values whose sizes or numbers depend on data.
SIZES_FROM_DATA = (DataDependentOutputException, DynamicOutputShapeException)


@functools.cache
def _own_mode() -> FakeTensorMode:
    return FakeTensorMode()


def plain_size(size: Any) -> Any:
    """A size as a number where the trace has found out that it can only be that one; no guard is added."""
    if not isinstance(size, torch.SymInt):
        return size
    known = size.node.maybe_as_int()
    return size if known is None else known


def size_hint(size: Any) -> int:
    """A size as it was when the graph was traced, without a guard; 0 when it is unknown."""
    if isinstance(size, int):
        return size
    hint = size.node.hint
    return 0 if hint is None else int(hint)


def storage_id(value: torch.Tensor) -> int | None:
    """Identity of the memory that a tensor, also a fake one, stands for: equal for views of one another.

    None where there is no such memory, as for sparse tensors and those inside of ``torch.func``.
    """
    try:
        return int(value.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return None


def is_transformed(value: Any) -> bool:
    """Whether a tensor stands for another one inside of ``vmap``, ``grad`` or the like."""
    return isinstance(value, torch.Tensor) and bool(torch._C._functorch.is_functorch_wrapped_tensor(value))


def keep_guards(original: ExportedProgram, rewritten: ExportedProgram) -> None:
    """Give a rewritten program the conditions on input sizes of the original, no more and no fewer.

    A program that was read from a file has them as text only, and tracing new operators may add some.
    """
    rewritten._guards_code = list(original._guards_code)


def guards_may_be_skipped() -> bool:
    """Whether Dynamo takes the parameters of a module for unchanged as long as its dictionaries are.

    It does so by default in PyTorch 2.11, and then sees nothing of what is assigned to ``.data``.
    """
    config = sys.modules.get("torch._dynamo.config")
    return bool(getattr(config, "use_recursive_dict_tags_for_guards", False))


def storage_is_abandoned(storage: Any, held: int = 1) -> bool:
    """Whether the caller, who holds so many references to this storage, holds all."""
    return int(torch._C._storage_Use_Count(storage._cdata)) <= held


class TensorLayout(NamedTuple):
    """How C code reads a tensor that it has as a Python object.

    ``handle`` is where in the object, in bytes, the C++ tensor is held. ``version`` and ``data_ptr`` are
    the addresses of functions that take the address of that place: ``int64_t(const void*)`` and, with 0 for
    success, ``int32_t(const void*, void**)``.
    """

    handle: int
    version: int
    data_ptr: int


@functools.cache
def tensor_layout() -> TensorLayout | None:
    """What C code needs to read tensors; None where this PyTorch is not as it is expected to be."""
    with outside_tracing():
        tensors = [torch.empty(2)[1:], torch.nn.Parameter(torch.empty(1))]
    handles = [o for o in range(0, torch.Tensor.__basicsize__, 8) if all(_holds_at(t, o) for t in tensors)]
    try:
        library = ctypes.CDLL(torch._C.__file__)
        version, data_ptr = library._ZNK2at10TensorBase8_versionEv, library.aoti_torch_get_data_ptr
    except (AttributeError, OSError):
        return None
    version.restype, version.argtypes = ctypes.c_int64, (ctypes.c_void_p,)
    data_ptr.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    if len(handles) != 1 or not all(_reads(version, data_ptr, t, handles[0]) for t in tensors):
        return None
    return TensorLayout(handles[0], *(_address(function) for function in (version, data_ptr)))


def _holds_at(tensor: torch.Tensor, offset: int) -> bool:
    return ctypes.c_void_p.from_address(id(tensor) + offset).value == tensor._cdata


def _reads(version: Any, data_ptr: Any, tensor: torch.Tensor, handle: int) -> bool:
    """Whether the functions tell of a tensor what PyTorch tells."""
    place, found = id(tensor) + handle, ctypes.c_void_p()
    with torch.no_grad():
        tensor.zero_()
    if version(place) != tensor._version or data_ptr(place, ctypes.addressof(found)):
        return False
    return found.value == tensor.data_ptr()


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def after_preserved_writes(tell: Callable[[Sequence[torch.Tensor]], None]) -> None:
    """Have ``tell`` called with the tensors whenever something wrote to them under preserved counters."""
    guard: Any = torch.autograd.grad_mode._unsafe_preserve_version_counter
    leave = guard.__exit__

    @functools.wraps(leave)
    def left(self: Any, *args: Any) -> Any:
        done = leave(self, *args)
        tell(self.tensors)
        return done

    guard.__exit__ = left


#: Keeps the kernels below registered.
_collectives: list[torch.library.Library] = []


def after_collectives(tell: Callable[[Sequence[torch.Tensor], Callable[[], bool]], None]) -> None:
    """Have ``tell`` called with the tensors of each collective, and with what says whether it still runs.

    Collectives write to tensors that their schemas do not mark, so they raise no version counter. The
    kernels stand where the dispatcher raises those counters for other operators, and hand on to the rest.
    """
    if not torch.distributed.is_available():
        return
    library = torch.library.Library("c10d", "IMPL")
    for name in torch._C._dispatch_get_all_op_names():
        namespace, _, own = name.partition("::")
        if namespace == "c10d" and "." not in own and own not in _NO_COLLECTIVES:
            operator = getattr(torch.ops.c10d, own).default
            library.impl(own, _collective(operator, tell), "ADInplaceOrView", with_keyset=True)
    _collectives.append(library)


_NO_COLLECTIVES = ("barrier", "monitored_barrier_", "check_for_nan", "send")


def _collective(operator: Any, tell: Callable[[Sequence[torch.Tensor], Callable[[], bool]], None]) -> Any:
    def run(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        done = operator.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, *args, **kwargs)
        work = done[-1] if isinstance(done, tuple) else done
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        tell(tensors, functools.partial(_runs, work))
        return done

    return run


def _runs(work: Any) -> bool:
    """Whether the work of a collective is not completed."""
    try:
        return not torch._C._distributed_c10d.Work.unbox(work).is_completed()
    except (RuntimeError, TypeError):  # not everything that a process group returns is such work
        return False
