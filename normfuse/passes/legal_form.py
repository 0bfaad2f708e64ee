"""What is legal in a program after each stage; what is not raises, with the stage, the node and the fault.

    always          the graph is well formed, and the recorded values are those that the operators give
                    placeholders are the program's inputs, then the folded weights, and these are read
                    algebra on weights reads nothing else, and marks in the metadata are known ones
    from lift on    every norm in the graph has a site, and every site its norm
    from hoist on   algebra on weights is left only where gradients or constants keep it
    from lower on   no norm is left

Run after every stage under ``NORMFUSE_STRICT=1``, and so in all tests (as in tinygrad and in LLVM's verifier:
a broken promise shows at the stage that broke it and not three stages later).
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import torch
from torch.fx import Node

from normfuse.errors import InvariantError
from normfuse.folding.recipe import FOLD
from normfuse.ir.agreement import Agreement, state_of
from normfuse.ir.region import UNLIFTED, NormRegion, norm_of
from normfuse.passes.settle_shifts import SHIFT_MARKS
from normfuse.passes.work import Work

__all__ = ["LegalForm"]

_MARKS = frozenset({FOLD, UNLIFTED, *SHIFT_MARKS})
_Fault = tuple[Node, str]


class LegalForm:
    """An observer that looks at everything and changes nothing."""

    def __init__(self) -> None:
        self._agreement = Agreement()
        self._passed: set[str] = set()
        self._seen: list[Any] = []

    def stage(self, name: str, work: Work) -> None:
        """Look at what a stage left, where it changed anything.

        Raises:
            InvariantError: naming the stage, the node and what is wrong with it.
        """
        self._passed.add(name)
        if self._is_as_before(work):
            return
        try:
            work.program.gm.graph.lint()
            node, fault = next(self._faults(work), (None, ""))
        except Exception as error:
            raise InvariantError(f"after {name}: {error}") from error
        if node is not None:
            raise InvariantError(f"after {name}: {node.name} ({node.op} {node.target}): {fault}")

    def _is_as_before(self, work: Work) -> bool:
        demands = sorted(self._passed & {"lift", "hoist", "lower"})
        seen: list[Any] = [*work.sites, None, *(one.node for one in work.folded), None, *demands]
        for node in work.program.gm.graph.nodes:
            seen += (node, *state_of(node), *node.meta)
        is_same = len(seen) == len(self._seen) and all(map(operator.is_, seen, self._seen))
        self._seen = seen
        return is_same

    def _faults(self, work: Work) -> Iterator[_Fault]:
        yield from _interface(work)
        yield from _marks(work)
        yield from _algebra(work)
        if "lift" in self._passed and "lower" not in self._passed:
            yield from _norms(work)
        if "hoist" in self._passed:
            yield from _left_behind(work)
        if "lower" in self._passed:
            yield from _not_lowered(work)
        if self._passed == {"capture"}:
            self._agreement.take(work.program.gm.graph)
        yield from self._agreement.disagreements(work.program.gm.graph)


def _interface(work: Work) -> Iterator[_Fault]:
    """What the caller passes: the inputs as they came, and behind them what is computed once."""
    found = [node for node in work.program.gm.graph.nodes if node.op == "placeholder"]
    expected = [*(i.node for i in work.program.inputs), *(one.node for one in work.folded)]
    for place, (node, wanted) in enumerate(zip_longest(found, expected)):
        if node is wanted:
            continue
        if wanted is not None and wanted not in found:
            yield wanted, "the program has this input and the graph does not"
        elif node not in expected:
            yield node, "the caller passes nothing for this placeholder"
        else:
            yield node, f"is placeholder {place} of the graph, and the program's is {wanted}"
    for one in work.folded:
        if not one.node.users:
            yield one.node, "a weight is folded that nothing reads"


def _marks(work: Work) -> Iterator[_Fault]:
    for node in work.program.gm.graph.nodes:
        for key in node.meta:
            if isinstance(key, str) and key.startswith("normfuse") and key not in _MARKS:
                yield node, f"no stage knows the mark {key}"


def _algebra(work: Work) -> Iterator[_Fault]:
    """Folding runs it once, with nothing but weights at hand."""
    weights = {*work.program.weights, *(one.node for one in work.folded)}
    for node in work.program.gm.graph.nodes:
        operands = node.all_input_nodes
        is_pure = node.op == "get_attr" or (node.op == "call_function" and not _draws(node))
        if is_pure and all(operand in weights for operand in operands):
            weights.add(node)
        elif FOLD in node.meta and node.op != "placeholder":
            others = ", ".join(o.name for o in operands if o not in weights)
            yield node, f"algebra on weights reads {others or 'what differs from call to call'}"


def _draws(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _norms(work: Work) -> Iterator[_Fault]:
    regions = {node: region for node in work.program.gm.graph.nodes if (region := norm_of(node)) is not None}
    for node in work.sites:
        if node not in regions:
            yield node, "a norm that has a site is not in the graph"
    for node, region in regions.items():
        if node not in work.sites:
            yield node, "a norm has no site"
        given = len(region.operands(node).as_args())
        taken = sum(inner.op == "placeholder" for inner in region.body.nodes)
        if len(node.args) != given or given != taken:
            yield node, f"has {len(node.args)} operands, its description {given} and its body {taken}"


def _left_behind(work: Work) -> Iterator[_Fault]:
    """Algebra on weights that could have been taken out: some weight is in it, and none that trains."""
    trains: dict[Node, bool] = {}
    for node in work.program.gm.graph.nodes:
        found = work.program.weights.get(node)
        operands = [o for o in node.all_input_nodes if o in trains]
        if found is not None:
            trains[node] = work.program.grad_enabled and found.trains
        elif operands:
            trains[node] = any(trains[o] for o in operands)
        is_stuck = FOLD in node.meta and node.op != "placeholder" and node in trains and not trains[node]
        if is_stuck and not any(FOLD in user.meta for user in node.users):
            yield node, "algebra on weights is left in the graph, and nothing keeps it there"


def _not_lowered(work: Work) -> Iterator[_Fault]:
    gm = work.program.gm
    left = {name for name, module in gm.named_children() if isinstance(module, NormRegion)}
    for node in gm.graph.nodes:
        if node.op == "call_module" and (node.target in left or norm_of(node) is not None):
            yield node, "a norm is left"
    for name in left:
        yield gm.graph.output_node(), f"the module {name} of a norm is left"
