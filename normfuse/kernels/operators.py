"""The kernels as operators of PyTorch, with gradients, which ``torch.compile`` sees into.

A result that was not asked for is an empty tensor: operators have a fixed number of results.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.library import triton_op

from normfuse.kernels.choice import chosen, described
from normfuse.kernels.code.backward import backward_rows
from normfuse.kernels.code.backward_wide import backward_wide
from normfuse.kernels.code.columns import backward_columns
from normfuse.kernels.code.forward import forward_rows
from normfuse.kernels.code.forward_wide import forward_wide
from normfuse.kernels.layout import dense, float32, programs, rows_of, strides
from normfuse.kernels.plan import Plan, backward_plan, column_plan, forward_plans
from normfuse.kernels.reference import RMS
from normfuse.torch_compat import wrap_triton

__all__ = ["norm", "norm_backward"]

Maybe = torch.Tensor | None


@triton_op("normfuse::norm", mutates_args={})
def norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    gate: torch.Tensor | None,
    kind: int,
    eps: float,
    offset: float,
    groups: int,
    gate_first: bool,
    wants_value: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """``(y, x + residual, mean or sum, rstd)``, the last two of the shape ``(rows, groups)``."""
    width = x.shape[-1] // groups
    flat = rows_of(x, x.shape[-1])
    assert flat is not None
    rows = flat.shape[0]
    weight, bias = dense(weight), dense(bias)
    others = [rows_of(value, x.shape[-1]) for value in (residual, gate)]
    y = x.new_empty(x.shape if wants_value else 0)
    total = x.new_empty(0 if residual is None else x.shape)
    centre = float32(x, 0) if kind == RMS else float32(x, rows, groups)
    rstd = float32(x, rows, groups)
    arguments = [
        flat, *others, weight, bias,
        y if wants_value else None,
        None if residual is None else total,
        None if kind == RMS else centre,
        rstd, rows, *strides(flat, *others), eps, kind, offset, gate_first, width, groups,
    ]  # fmt: skip

    def launch(plan: Plan) -> None:
        grid = ((rows + plan.rows - 1) // plan.rows, groups)
        if plan.is_wide:
            wrap_triton(forward_wide)[grid](*arguments, plan.rows, plan.block, num_warps=plan.warps)
        else:
            wrap_triton(forward_rows)[grid](*arguments, plan.rows, plan.block, num_warps=plan.warps)

    if rows != 0:
        given = described(residual, gate, weight, bias)
        form = (width, groups, kind, gate_first, wants_value, given)
        launch(chosen("norm", forward_plans(width), launch, flat, rows, *form))
    return y, total, centre, rstd


@triton_op("normfuse::norm_backward", mutates_args={})
def norm_backward(
    dy: torch.Tensor | None,
    dtotal: torch.Tensor | None,
    drstd: torch.Tensor | None,
    h: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    gate: torch.Tensor | None,
    centre: torch.Tensor,
    rstd: torch.Tensor,
    kind: int,
    offset: float,
    groups: int,
    gate_first: bool,
    wants_weight: bool,
    wants_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """``(dx, dweight, dbias, dgate)``"""
    features = h.shape[-1]
    width = features // groups
    flat_dy, flat_dtotal, flat, flat_gate = (rows_of(value, features) for value in (dy, dtotal, h, gate))
    assert flat is not None
    rows = flat.shape[0]
    scale, shift = dense(weight), dense(bias)
    dx = h.new_empty(h.shape)
    dgate = h.new_empty(0) if gate is None else gate.new_empty(h.shape)
    plan = backward_plan(width, h.element_size())
    cut = column_plan(width) if plan.is_wide else plan
    blocks = (width + cut.block - 1) // cut.block
    count = programs(h.device, (rows + cut.rows - 1) // cut.rows, groups * blocks, cut.warps)
    weight_sums = float32(h, count, features) if wants_weight else None
    bias_sums = float32(h, count, features) if wants_bias else None
    inputs = [
        flat_dy, flat_dtotal, dense(drstd), flat, flat_gate, scale, shift,
        None if kind == RMS else centre, rstd, dx, None if gate is None else dgate,
    ]  # fmt: skip
    sizes = [rows, *strides(flat_dy, flat_dtotal, flat, flat_gate), kind, offset, gate_first, width, groups]
    if rows != 0 and not plan.is_wide:
        wrap_triton(backward_rows)[(count, groups)](
            *inputs, weight_sums, bias_sums, *sizes, plan.rows, plan.block, num_warps=plan.warps
        )
    if rows != 0 and plan.is_wide:
        wrap_triton(backward_wide)[(rows, groups)](*inputs, *sizes, 1, plan.block, num_warps=plan.warps)
        if wants_weight or wants_bias:
            wrap_triton(backward_columns)[(count, blocks, groups)](
                flat_dy, flat, flat_gate, inputs[7], rstd, weight_sums, bias_sums, rows,
                *strides(flat_dy, flat, flat_gate), kind, gate_first, width, groups,
                cut.rows, cut.block, num_warps=cut.warps,
            )  # fmt: skip
    return dx, _added_up(weight_sums, weight, dx), _added_up(bias_sums, bias, dx), dgate


def _added_up(sums: Maybe, of: Maybe, beside: torch.Tensor) -> torch.Tensor:
    if sums is None or of is None:
        return beside.new_empty(0)
    return sums.sum(0).to(of.dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x, weight, bias, residual, gate, kind, _, offset, groups, gate_first, _ = inputs
    _, total, centre, rstd = output
    ctx.save_for_backward(x if residual is None else total, weight, bias, gate, centre, rstd)
    ctx.form = (kind, offset, groups, gate_first)
    ctx.has_residual = residual is not None
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Maybe, dtotal: Maybe, _: Maybe, drstd: Maybe) -> tuple[Maybe, ...]:
    h, weight, bias, gate, centre, rstd = ctx.saved_tensors
    if not ctx.has_residual:
        dtotal = None
    wants = [
        value is not None and needed
        for value, needed in zip((weight, bias), ctx.needs_input_grad[1:3], strict=True)
    ]
    dx, dweight, dbias, dgate = norm_backward(
        dy, dtotal, drstd, h, weight, bias, gate, centre, rstd, *ctx.form, *wants
    )
    found = (dx, dweight if wants[0] else None, dbias if wants[1] else None)
    return (*found, dx if ctx.has_residual else None, None if gate is None else dgate, *[None] * 6)


norm.register_autograd(_gradients, setup_context=_save)
