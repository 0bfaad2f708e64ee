"""The product behind an RMSNorm as an operator of PyTorch, with gradients.

With u = dy W, the gradient of the input is that of an RMSNorm without weight that u arrives at, since
``dy . (x W') = u . x``; that of W is ``dy' (rstd * x)``, with the normalized values in the dtype of x, which
holds them whatever the sizes of x and dy are. Where x is a sum, both addends have its gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.library import triton_op

from normfuse.kernels.choice import chosen, described
from normfuse.kernels.code.product import linear_rows
from normfuse.kernels.layout import dense, float32, rows_of, strides
from normfuse.kernels.operators import norm_backward
from normfuse.kernels.plan import LinearPlan, linear_plans
from normfuse.kernels.reference import RMS
from normfuse.torch_compat import wrap_triton

__all__ = ["linear"]

Maybe = torch.Tensor | None


@triton_op("normfuse::linear_rms_norm", mutates_args={})
def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``(y, x + residual, rstd)``, the last of the shape ``(rows, 1)``."""
    width, outputs = x.shape[-1], weight.shape[0]
    flat, other, matrix = (rows_of(value, width) for value in (x, residual, weight))
    assert flat is not None
    assert matrix is not None
    rows, shift = flat.shape[0], dense(bias)
    y = x.new_empty((*x.shape[:-1], outputs))
    total = x.new_empty(0 if residual is None else x.shape)
    rstd = float32(x, rows, 1)
    is_tf32 = x.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    precision = "tf32" if is_tf32 else "ieee"
    arguments = [
        flat, other, matrix, shift, y, None if residual is None else total, rstd, rows, outputs,
        *strides(flat, other, matrix), eps, width, precision,
    ]  # fmt: skip

    def launch(plan: LinearPlan) -> None:
        grid = ((outputs + plan.block_n - 1) // plan.block_n) * ((rows + plan.block_m - 1) // plan.block_m)
        cut = (plan.block_m, plan.block_n, plan.block_k)
        wrap_triton(linear_rows)[(grid,)](*arguments, *cut, num_warps=plan.warps, num_stages=plan.stages)

    if rows != 0 and outputs != 0:
        plans = linear_plans(rows, outputs, x.element_size())
        form = (width, outputs, precision, described(residual, bias))
        launch(chosen("linear_rms_norm", plans, launch, flat, rows, *form))
    else:  # nothing runs, and gradients read what it would have left
        total = total if residual is None else x + residual
        rstd = torch.zeros_like(rstd)
    return y, total, rstd


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x, weight, bias, residual, _ = inputs
    _, total, rstd = output
    ctx.adds = residual is not None
    ctx.save_for_backward(x if residual is None else total, weight, bias, rstd)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Maybe, dtotal: Maybe, _: Maybe) -> tuple[Maybe, ...]:
    h, weight, bias, rstd = ctx.saved_tensors
    dx = dtotal if ctx.adds else None
    dweight = dbias = None
    if dy is not None:
        flat, rows = dy.reshape(rstd.shape[0], weight.shape[0]), h.reshape(-1, h.shape[-1])
        with torch.autocast(h.device.type, enabled=False):
            if ctx.needs_input_grad[0] or ctx.needs_input_grad[3]:
                dx = _behind_product((flat @ weight).view(h.shape), dx, h, rstd)
            if ctx.needs_input_grad[1]:
                dweight = flat.t() @ (rows * rstd).to(h.dtype)
            if bias is not None and ctx.needs_input_grad[2]:
                dbias = flat.sum(0, dtype=torch.float32).to(bias.dtype)
    return dx, dweight, dbias, dx if ctx.adds else None, None


def _behind_product(
    arriving: torch.Tensor, dtotal: Maybe, h: torch.Tensor, rstd: torch.Tensor
) -> torch.Tensor:
    """The gradient of h, from that of the normalized value and that of h itself."""
    nothing, off = rstd.new_empty(0), (False, False, False)
    found: torch.Tensor = norm_backward(
        arriving, dtotal, None, h, None, None, None, nothing, rstd, RMS, 0.0, 1, *off
    )[0]
    return found


linear.register_autograd(_gradients, setup_context=_save)
