"""The stream of a model is turned by an orthogonal matrix.

    N(W a + b) = Q' N(Q W a + Q b),    W N(x) = (W Q') N(Q x),    for an RMSNorm N without weight and bias

(SliceGPT: Ashkboos et al. 2024, arXiv 2401.15024, theorem 1; QuaRot: Ashkboos et al. 2024, arXiv 2404.00456,
section 3.) The rules before this one have made RMSNorms of LayerNorms and have given their weights and biases
to what reads them. Numerics class: reassociated.
"""

from __future__ import annotations

from torch import Tensor
from torch.fx import Node

from normfuse.analysis.plan import Maps
from normfuse.analysis.rotation import Rotate
from normfuse.analysis.stream import Value, rms_axis
from normfuse.errors import OptionError
from normfuse.ir.program import Input, Program, Role
from normfuse.ir.sizes import static_size, tensor_of
from normfuse.ir.spec import NormSpec
from normfuse.passes.basis import Basis
from normfuse.passes.change_basis import change_basis
from normfuse.passes.rule import Numerics, Rule
from normfuse.passes.work import Work
from normfuse.report import Refusal, Site

__all__ = ["ROTATE", "give_rotation", "rotate"]


def give_rotation(program: Program, matrix: Tensor) -> None:
    """Make a matrix known to a program, as an input behind the others that belongs to the model."""
    graph = program.gm.graph
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    weights = [i.value for i in program.inputs if i.is_weight]
    value = matrix.to(weights[0].device) if weights else matrix
    with graph.inserting_after(placeholders[-1]):
        node = graph.placeholder("rotation")
    node.target = node.name  # an input of the model may be called so
    taken, number = {i.name for i in program.inputs}, 1
    while (name := "rotation" if number == 1 else f"rotation_{number}") in taken:
        number += 1
    fake = next(t for n in placeholders if (t := tensor_of(n)) is not None)
    node.meta["val"] = fake.new_empty(value.shape, dtype=value.dtype, device=value.device)
    program.inputs.append(Input(node, Role.CONSTANT, name, value))
    program.rotation = node


def rotate(work: Work) -> None:
    """Turn every stream of the matrix's size that can be turned as a whole.

    Raises:
        OptionError: when no norm runs over so many channels.
    """
    matrix = work.program.rotation
    assert matrix is not None
    size = static_size(matrix, 0)
    read = {node: value for node in work.sites if (value := rms_axis(node)) is not None}
    sizes = {static_size(*value) for value in read.values()}
    if size not in sizes:
        named = ", ".join(sorted(str(s) for s in sizes if s is not None))
        found = f"the model's RMSNorms run over {named} channels" if named else _why_none(work)
        raise OptionError(f"rotation is {size} x {size}, and {found}")

    def reads(node: Node) -> Value | None:
        value = rms_axis(node)
        return value if value is not None and static_size(*value) == size else None

    def norm(core: NormSpec, channels: int) -> tuple[NormSpec, Maps]:
        return core, (Rotate(matrix, is_back=True),)

    written_out = change_basis(work, ROTATE, Basis(Rotate(matrix), reads, norm, keeps_lengths=True))
    if written_out:
        work.report.notes.append(
            f"{written_out} values are rotated as the program runs, where no weight could take the rotation"
        )


def _why_none(work: Work) -> str:
    codes = dict.fromkeys(site.refusal.code for site in work.report.sites if site.refusal is not None)
    return f"no norm of the model is or became an RMSNorm ({', '.join(codes) or 'it has none'})"


def _never(site: Site) -> bool:
    return False


def _not_given(work: Work) -> Refusal | None:
    return Refusal("not_asked", "no rotation is given") if work.program.rotation is None else None


ROTATE = Rule(
    "rotate",
    Numerics.REASSOCIATED,
    "N(W a + b) = Q' N(Q W a + Q b),  W N(x) = (W Q') N(Q x)",
    "Ashkboos et al. 2024, arXiv 2401.15024, theorem 1",
    (
        "an RMSNorm without weight and bias: these weights write the values that it reads",
        "read by such norms alone: nothing else sees the values",
        "changed weights: each writer and reader has its own copy",
    ),
    run=rotate,
    waits=_never,
    targets=("rms_norm",),
    idle=_not_given,
)
