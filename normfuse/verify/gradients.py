"""Gradients of one scalar that sees every output:  loss = sum over leaves of <projection, output>.

The projections are fixed random tensors, rounded to the output's dtype, so that the model, the candidate and
the oracle differentiate the very same function.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from normfuse.errors import VerificationError
from normfuse.verify.capture import Capture
from normfuse.verify.dtypes import is_real_number, wide_dtype, widen_inputs
from normfuse.verify.oracle import execute_wide, wide_arithmetic
from normfuse.verify.widen import widen

__all__ = ["oracle_run", "parameter_gradients", "trainable_parameters"]


def trainable_parameters(program: object, role: str) -> dict[str, Tensor]:
    """The parameters that require grad, by name (without the prefix that ``torch.compile`` adds)."""
    if not isinstance(program, nn.Module):
        raise VerificationError(f"grads=True needs modules, and the {role} is a {type(program).__name__}.")
    named: dict[str, Tensor] = {
        n.replace("_orig_mod.", ""): p for n, p in program.named_parameters() if p.requires_grad
    }
    if not named:
        raise VerificationError(f"grads=True, but no parameter of the {role} requires grad.")
    return named


def parameter_gradients(
    outputs: Mapping[str, Tensor], parameters: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]
) -> dict[str, Tensor]:
    """The derivative of the loss with respect to every parameter, zero where the outputs do not depend on it.

    ``outputs`` are attached to the autograd graph; ``dtypes`` are the model's dtypes of the same paths.
    """
    losses = [_projected(p, t, dtypes[p]) for p, t in outputs.items() if t.requires_grad and p in dtypes]
    if not losses:
        raise VerificationError("grads=True, but no output depends on a parameter that requires grad.")
    total = torch.stack([loss.to(losses[0].device) for loss in losses]).sum()
    grads = torch.autograd.grad(total, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, grads, strict=True))


def oracle_run(
    capture: Capture, names: list[str], dtypes: Mapping[str, torch.dtype]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs by path and gradients by parameter name, in float64, through the widened graph."""
    graph = widen(capture.graph)
    with torch.enable_grad(), wide_arithmetic():
        inputs = widen_inputs(capture.inputs)
        parameters = {name: _leaf(inputs[capture.parameters[name]]) for name in names}
        values = execute_wide(graph, inputs)
        outputs = {p: v for p, v in zip(capture.paths, values, strict=True) if isinstance(v, Tensor)}
        return outputs, parameter_gradients(outputs, parameters, dtypes)


def _leaf(tensor: object) -> Tensor:
    assert isinstance(tensor, Tensor)
    return tensor.requires_grad_()


def _projected(path: str, output: Tensor, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(path.encode()))
    projection = torch.randn(output.shape, generator=generator, dtype=wide_dtype(dtype))
    rounded = projection.to(dtype).to(output.device, wide_dtype(dtype))
    product = output.to(wide_dtype(dtype)) * rounded
    return product.real.sum() if is_real_number(dtype) else product.sum()
