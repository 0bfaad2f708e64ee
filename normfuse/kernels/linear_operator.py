"""The product behind an RMSNorm as an operator of PyTorch, with gradients.

With u = dy W, the gradient of the input is that of an RMSNorm without weight that u arrives at, since
``dy . (x W') = u . x``; that of W is ``(rstd * dy)' x``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.library import triton_op

from normfuse.kernels.choice import chosen, described
from normfuse.kernels.code.product import linear_rows
from normfuse.kernels.layout import dense, float32, rows_of
from normfuse.kernels.operators import norm_backward
from normfuse.kernels.plan import LinearPlan, linear_plans
from normfuse.kernels.reference import RMS
from normfuse.torch_compat import wrap_triton

__all__ = ["linear"]

Maybe = torch.Tensor | None


@triton_op("normfuse::linear_rms_norm", mutates_args={})
def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """``(y, rstd)``, the latter of the shape ``(rows, 1)``."""
    flat, matrix = rows_of(x, x.shape[-1]), rows_of(weight, x.shape[-1])
    assert flat is not None
    assert matrix is not None
    rows, outputs = flat.shape[0], matrix.shape[0]
    y = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    rstd = float32(x, rows, 1)
    shift = dense(bias)
    precision = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"

    def launch(plan: LinearPlan) -> None:
        grid = ((outputs + plan.block_n - 1) // plan.block_n, (rows + plan.block_m - 1) // plan.block_m)
        wrap_triton(linear_rows)[grid](
            flat, matrix, shift, y, rstd, rows, outputs,
            flat.stride(0), matrix.stride(0), eps, x.shape[-1], precision,
            plan.block_m, plan.block_n, plan.block_k, num_warps=plan.warps, num_stages=plan.stages,
        )  # fmt: skip

    if rows != 0 and outputs != 0:
        form = (x.shape[-1], outputs, precision, described(bias))
        launch(chosen("linear_rms_norm", linear_plans(rows, outputs), launch, flat, rows, *form))
    return y.view(*x.shape[:-1], outputs), rstd


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x, weight, bias, _ = inputs
    ctx.save_for_backward(x, weight, bias, output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Maybe, _: Maybe) -> tuple[Maybe, ...]:
    if dy is None:
        return None, None, None, None
    x, weight, bias, rstd = ctx.saved_tensors
    flat = dy.reshape(rstd.shape[0], weight.shape[0])
    dx = dweight = dbias = None
    if ctx.needs_input_grad[0]:
        arriving = (flat @ weight).view(x.shape)
        nothing = rstd.new_empty(0)
        dx = norm_backward(
            arriving, None, None, x, None, None, None, nothing, rstd, RMS, 0.0, 1, False, False, False
        )[0]
    if ctx.needs_input_grad[1]:
        dweight = (flat * rstd).to(x.dtype).t() @ x.reshape(-1, x.shape[-1])
    if bias is not None and ctx.needs_input_grad[2]:
        dbias = flat.sum(0, dtype=torch.float32).to(bias.dtype)
    return dx, dweight, dbias, None


linear.register_autograd(_gradients, setup_context=_save)
