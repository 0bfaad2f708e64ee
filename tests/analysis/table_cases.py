"""Calls of every operator of the table, with sizes that coincide so that a wrong axis cannot hide."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch

aten = torch.ops.aten
N = 4


@dataclass(frozen=True)
class Case:
    """One call; ``axes`` are the axes of the output along which the table lets maps pass."""

    target: Any
    args: tuple[Any, ...]
    axes: frozenset[int]
    kwargs: dict[str, Any] = field(default_factory=dict)
    part: int | None = None

    def __str__(self) -> str:
        shapes = "-".join("x".join(map(str, a.shape)) for a in self.args if isinstance(a, torch.Tensor))
        rest = [a for a in self.args if isinstance(a, (int, float, str))]
        return f"{self.target}({shapes}{rest}{self.kwargs or ''})".replace("aten.", "")


def case(target: Any, *args: Any, axes: Any = (), part: int | None = None, **kwargs: Any) -> Case:
    return Case(target, args, frozenset(axes), kwargs, part)


def real(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape) + len(shape)), dtype=dtype)
    return made + 1


def index(*shape: int) -> torch.Tensor:
    return torch.randint(0, N, shape, generator=torch.Generator().manual_seed(len(shape)))


def mask(*shape: int) -> torch.Tensor:
    return index(*shape) > 1


CUBE, SQUARE, ROW = real(N, N, N), real(N, N), real(N)
SINGLE = real(2, N, N, dtype=torch.float32)
IMAGE = real(N, N, N, N)
UNEVEN = real(2, 3, N)

ELEMENTWISE = [
    case(aten.zeros.default, [2, N], axes=(0, 1)),
    case(aten.new_zeros.default, SQUARE, [2, N], axes=(0, 1)),
    case(aten.zeros_like.default, SQUARE, axes=(0, 1)),
    case(aten.add.Tensor, CUBE, real(N, N, N) * 2, axes=(0, 1, 2)),
    case(aten.add.Tensor, CUBE, ROW, axes=(2,)),
    case(aten.add.Tensor, ROW, CUBE, axes=(2,), alpha=3),
    case(aten.add.Tensor, CUBE, CUBE, axes=(0, 1, 2)),
    case(aten.add.Tensor, CUBE, real(N, 1, N), axes=(0, 2)),
    case(aten.add.Tensor, CUBE, real(N, N, 1), axes=(0, 1)),
    case(aten.add.Tensor, CUBE, 2.5),
    case(aten.add.Tensor, CUBE, 0, axes=(0, 1, 2)),
    case(aten.sub.Tensor, CUBE, SQUARE, axes=(1, 2), alpha=-2.5),
    case(aten.sub.Tensor, SQUARE, CUBE, axes=(1, 2)),
    case(aten.mul.Tensor, CUBE, real(N, N, 1), axes=(2,)),
    case(aten.mul.Tensor, real(N, 1, 1), CUBE, axes=(0, 1, 2)),
    case(aten.mul.Tensor, CUBE, ROW, axes=(0, 1, 2)),
    case(aten.mul.Tensor, ROW, CUBE, axes=(0, 1, 2)),
    case(aten.mul.Tensor, CUBE, real(N, 1), axes=(0, 1, 2)),
    case(aten.mul.Tensor, CUBE, CUBE),
    case(aten.mul.Tensor, CUBE, real(N, N, N) * 2),
    case(aten.mul.Tensor, CUBE, SQUARE, axes=(0,)),
    case(aten.mul.Tensor, CUBE, 3.0, axes=(0, 1, 2)),
    case(aten.mul.Tensor, real(N, N, 1), ROW, axes=(0, 1, 2)),
    case(aten.div.Tensor, CUBE, real(), axes=(0, 1, 2)),
    case(aten.div.Tensor, CUBE, real(N, N, 1), axes=(2,)),
    case(aten.div.Tensor, CUBE, ROW, axes=(0, 1)),
    case(aten.div.Tensor, real(N, N, 1), CUBE),
    case(aten.div.Tensor, ROW, CUBE),
    case(aten.lerp.Scalar, CUBE, real(N, N, N) * 2, 0.3, axes=(0, 1, 2)),
    case(aten.lerp.Tensor, CUBE, SQUARE, real(N, N, 1), axes=(2,)),
    case(aten.lerp.Tensor, CUBE, real(N, N, N) * 2, ROW, axes=(0, 1)),
    case(aten.lerp.Tensor, CUBE, real(N, 1, N), real(), axes=(0, 2)),
    case(aten.mul.Scalar, CUBE, -2.0, axes=(0, 1, 2)),
    case(aten.div.Scalar, CUBE, 3.0, axes=(0, 1, 2)),
    case(aten.neg.default, CUBE, axes=(0, 1, 2)),
    case(aten.clone.default, CUBE, axes=(0, 1, 2)),
    case(aten.alias.default, CUBE, axes=(0, 1, 2)),
    case(aten.detach.default, CUBE, axes=(0, 1, 2)),
    case(aten.contiguous.default, CUBE.transpose(0, 2), axes=(0, 1, 2)),
    case(aten.lift_fresh_copy.default, CUBE, axes=(0, 1, 2)),
    case(aten.to.dtype, SINGLE, torch.float64, axes=(0, 1, 2)),
    case(aten.to.dtype, SINGLE, torch.int64),
    case(aten.to.dtype, SINGLE, torch.float8_e4m3fn),
    case(aten.to.dtype, index(N, N), torch.float64),
    case(aten.to.device, CUBE, torch.device("cpu"), torch.float64, axes=(0, 1, 2)),
    case(aten.to.dtype_layout, SINGLE, axes=(0, 1, 2), dtype=torch.float64),
    case(aten.to.other, SINGLE, ROW, axes=(0, 1, 2)),
    case(aten._to_copy.default, SINGLE, axes=(0, 1, 2), dtype=torch.float64),
    case(aten.type_as.default, SINGLE, ROW, axes=(0, 1, 2)),
    case(aten.type_as.default, CUBE, CUBE),
    case(aten.dropout.default, CUBE, 0.5, False, axes=(0, 1, 2)),
    case(aten.dropout.default, CUBE, 0.5, True),
    case(aten.feature_dropout.default, CUBE, 0.5, False, axes=(0, 1, 2)),
    case(aten.feature_dropout.default, CUBE, 0.5, True),
]

LAYOUT = [
    case(aten.view.default, CUBE, [N * N, N], axes=(1,)),
    case(aten.view.default, CUBE, [N, N * N], axes=(0,)),
    case(aten.view.default, CUBE, [-1]),
    case(aten.reshape.default, CUBE, [2, 2, N, N], axes=(2, 3)),
    case(aten.reshape.default, real(2, 8), [N, N]),
    case(aten.reshape.default, real(N, 1, N), [N, 1, 1, N], axes=(0, 3)),
    case(aten.reshape_as.default, CUBE, real(N * N, N), axes=(1,)),
    case(aten.view_as.default, CUBE, real(N, N * N), axes=(0,)),
    case(aten.expand_as.default, real(N, 1, N), CUBE, axes=(0, 2)),
    case(aten.reshape.default, real(2, 2, N), [N, 2, 2]),
    case(aten.reshape.default, CUBE.transpose(0, 2), [N, 1, N * N], axes=(0,)),
    case(aten._unsafe_view.default, CUBE, [N * N, N], axes=(1,)),
    case(aten.flatten.using_ints, CUBE, 0, 1, axes=(1,)),
    case(aten.flatten.using_ints, CUBE, -2, axes=(0,)),
    case(aten.unflatten.int, CUBE, -1, [2, 2], axes=(0, 1)),
    case(aten.unflatten.int, CUBE, 0, [2, -1], axes=(2, 3)),
    case(aten.repeat.default, SQUARE, [1, 1, 1], axes=(1, 2)),
    case(aten.cat.default, [real(0), SQUARE], 0),
    case(aten.squeeze.default, real(1, N, 1, N), axes=(0, 1)),
    case(aten.squeeze.dim, real(N, 1, N), -2, axes=(0, 1)),
    case(aten.squeeze.dims, real(1, N, 1, N), [0, -2], axes=(0, 1)),
    case(aten.unsqueeze.default, SQUARE, -2, axes=(0, 2)),
    case(aten.unsqueeze.default, SQUARE, 0, axes=(1, 2)),
    case(aten.permute.default, CUBE, [2, 0, 1], axes=(0, 1, 2)),
    case(aten.permute.default, CUBE, [-1, -3, 1], axes=(0, 1, 2)),
    case(aten.transpose.int, CUBE, 0, -1, axes=(0, 1, 2)),
    case(aten.transpose.int, CUBE, -2, -1, axes=(0, 1, 2)),
    case(aten.mT.default, UNEVEN, axes=(0, 1, 2)),
    case(aten.t.default, SQUARE, axes=(0, 1)),
    case(aten.t.default, ROW, axes=(0,)),
    case(aten.numpy_T.default, CUBE, axes=(0, 1, 2)),
    case(aten.movedim.int, CUBE, 0, -1, axes=(0, 1, 2)),
    case(aten.movedim.int, IMAGE, -1, 1, axes=(0, 1, 2, 3)),
    case(aten.expand.default, real(N, 1), [N, N, N], axes=(1,)),
    case(aten.expand.default, ROW, [N, -1], axes=(1,)),
    case(aten.repeat.default, SQUARE, [2, 1, 1], axes=(1, 2)),
    case(aten.repeat.default, SQUARE, [1, 2], axes=(0,)),
    case(aten.select.int, CUBE, -2, 1, axes=(0, 1)),
    case(aten.select.int, CUBE, 0, -1, axes=(0, 1)),
    case(aten.slice.Tensor, CUBE, 1, 1, 3, axes=(0, 2)),
    case(aten.slice.Tensor, CUBE, -1, 0, 2**62, axes=(0, 1, 2)),
    case(aten.slice.Tensor, CUBE, -1, 0, N, 2, axes=(0, 1)),
    case(aten.index_select.default, CUBE, -1, index(N), axes=(0, 1)),
    case(aten.roll.default, CUBE, [1, 1], [0, -1], axes=(1,)),
    case(aten.roll.default, CUBE, [1]),
    case(aten.flip.default, CUBE, [-1], axes=(0, 1)),
    case(aten.narrow.default, CUBE, -2, 1, 2, axes=(0, 2)),
    case(aten.repeat_interleave.self_int, CUBE, 2, -3, axes=(1, 2)),
    case(aten.repeat_interleave.self_int, CUBE, 2),
    case(aten.cat.default, [CUBE, CUBE * 2], -2, axes=(0, 2)),
    case(aten.cat.default, [CUBE, CUBE], axes=(1, 2)),
    case(aten.concat.default, [UNEVEN, UNEVEN], 2, axes=(0, 1)),
    case(aten.stack.default, [SQUARE, SQUARE * 2, SQUARE], -1, axes=(0, 1)),
    case(aten.stack.default, [SQUARE] * N, 1, axes=(0, 2)),
    case(aten.pad.default, CUBE, [0, 0, 1, 0], axes=(0, 2)),
    case(aten.pad.default, CUBE, [1, 1], axes=(0, 1)),
    case(aten.pad.default, CUBE, [0, 0, 1, 1], "constant", 2.0),
    case(aten.pad.default, IMAGE, [1, 1, 1, 1], "reflect", axes=(0, 1)),
    case(aten.pad.default, CUBE, [1, 1], "circular", axes=(0, 1)),
    case(aten.constant_pad_nd.default, CUBE, [0, 0, -1, 2], axes=(0, 2)),
    case(aten.constant_pad_nd.default, CUBE, [0, 0, 1, 1], -1.0),
    case(aten.index.Tensor, SQUARE, [index(N, N)], axes=(2,)),
    case(aten.index.Tensor, CUBE, [index(N), index(N, 1)], axes=(2,)),
    case(aten.index.Tensor, CUBE, [index(N), None], axes=(1, 2)),
    case(aten.index.Tensor, CUBE, [None, index(N)], axes=(0, 2)),
    case(aten.index.Tensor, CUBE, [None, index(N, N)], axes=(0, 3)),
    case(aten.index.Tensor, CUBE, [None, None, index(N)], axes=(0, 1)),
    case(aten.index.Tensor, CUBE, [index(N), None, index(1)], axes=(1,)),
    case(aten.index.Tensor, IMAGE, [None, index(N), None, index(N, N)], axes=(2, 3)),
    case(aten.index.Tensor, IMAGE, [None, index(N), index(1), None], axes=(0, 2)),
    case(aten.index.Tensor, CUBE, [mask(N, N)], axes=(1,)),
    case(aten.index.Tensor, CUBE, [mask(N, N).to(torch.uint8)], axes=(1,)),
    case(aten.index.Tensor, CUBE, [None, mask(N)], axes=(0, 2)),
    case(aten.index.Tensor, IMAGE, [mask(N), None, index(1)], axes=(1, 2)),
]

LISTS = [
    case(target, *args, axes=axes, part=part)
    for target, args, axes in (
        (aten.split.Tensor, (CUBE, 2, -2), (0, 2)),
        (aten.split.Tensor, (CUBE, 2), (1, 2)),
        (aten.split_with_sizes.default, (CUBE, [1, 3], 2), (0, 1)),
        (aten.split.sizes, (CUBE, [2, 2], -1), (0, 1)),
        (aten.chunk.default, (CUBE, 2, -3), (1, 2)),
        (aten.unbind.int, (CUBE, -2), (0, 1)),
        (aten.unbind.int, (CUBE,), (0, 1)),
    )
    for part in (None, 1)
]

LINEAR = [
    case(aten.linear.default, CUBE, SQUARE, axes=(0, 1, 2)),
    case(aten.linear.default, CUBE, SQUARE, ROW, axes=(2,)),
    case(aten.linear.default, CUBE, SQUARE, real(1)),
    case(aten.linear.default, CUBE, ROW, axes=(0, 1)),
    case(aten.linear.default, SQUARE * 2, SQUARE, SQUARE),
    case(aten.linear.default, ROW, SQUARE, ROW * 2, axes=(0,)),
    case(aten.linear.default, SQUARE, SQUARE),
    case(aten.addmm.default, ROW, SQUARE, SQUARE * 2, axes=(1,), beta=2, alpha=-0.5),
    case(aten.addmm.default, real(N, N) * 3, SQUARE, SQUARE * 2, axes=(0, 1), beta=0),
    case(aten.addmm.default, real(N, 1), SQUARE, SQUARE * 2, axes=(0,)),
    case(aten.addmm.default, real(1, N), SQUARE, SQUARE * 2, axes=(1,)),
    case(aten.baddbmm.default, real(N, 1, N), CUBE, CUBE * 2, axes=(2,), beta=2, alpha=-0.5),
    case(aten.baddbmm.default, ROW, CUBE, CUBE * 2, axes=(2,)),
    case(aten.baddbmm.default, SQUARE, CUBE, CUBE * 2, axes=(1, 2)),
    case(aten.baddbmm.default, real(), CUBE, CUBE * 2),
    case(aten.addmv.default, ROW * 2, SQUARE, ROW, axes=(0,), beta=2),
    case(aten.addmv.default, real(1), SQUARE, ROW),
    case(aten.mv.default, SQUARE, ROW, axes=(0,)),
    case(aten.addmm.default, real(), SQUARE, SQUARE * 2),
    case(aten.addmm.default, ROW, SQUARE, SQUARE),
    case(aten.addmm.default, SQUARE, SQUARE * 2, SQUARE, axes=(1,)),
    case(aten.mm.default, SQUARE, SQUARE * 2, axes=(0, 1)),
    case(aten.mm.default, SQUARE, SQUARE),
    case(aten.bmm.default, CUBE, CUBE * 2, axes=(1, 2)),
    case(
        aten._grouped_mm.default,
        real(N, N, dtype=torch.float32),
        SINGLE,
        torch.tensor([1, N], dtype=torch.int32),
        axes=(1,),
    ),
    case(
        aten._grouped_mm.default,
        real(N, N, dtype=torch.float32),
        real(N, N, dtype=torch.float32) * 2,
        torch.tensor([1, N], dtype=torch.int32),
    ),
    case(aten._grouped_mm.default, SINGLE, SINGLE * 2, axes=(1, 2)),
    case(
        aten._grouped_mm.default,
        SINGLE,
        real(N, N, dtype=torch.float32),
        torch.tensor([1, N], dtype=torch.int32),
    ),
    case(aten.matmul.default, CUBE, SQUARE, axes=(0, 1, 2)),
    case(aten.matmul.default, SQUARE, IMAGE, axes=(0, 1, 2, 3)),
    case(aten.matmul.default, CUBE, IMAGE, axes=(0, 2, 3)),
    case(aten.matmul.default, real(1, N, N), IMAGE, axes=(0, 2, 3)),
    case(aten.matmul.default, CUBE, ROW, axes=(0, 1)),
    case(aten.matmul.default, ROW, CUBE, axes=(0, 1)),
    case(aten.einsum.default, "bnd,hd->bnh", [CUBE, SQUARE], axes=(0, 1, 2)),
    case(aten.einsum.default, "ab, cb -> ca", [SQUARE, SQUARE * 2], axes=(0, 1)),
    case(aten.einsum.default, "zxy,yx->yzx", [CUBE, SQUARE], axes=(1,)),
    case(aten.einsum.default, "ii,ij->j", [SQUARE, SQUARE * 2], axes=(0,)),
    case(aten.einsum.default, "ij,jk->ik", [SQUARE, SQUARE]),
    case(aten.einsum.default, "...d,hd->...h", [CUBE, SQUARE], axes=(0, 1, 2)),
    case(aten.einsum.default, "...d, hd", [CUBE, SQUARE], axes=(0, 1, 2)),
    case(aten.einsum.default, "db,cd", [SQUARE, SQUARE * 2], axes=(0, 1)),
    case(aten.einsum.default, "...d,...hd->...h", [CUBE, SQUARE], axes=(0, 1, 2)),
    case(aten.einsum.default, "...d,...d->...d", [CUBE, SQUARE], axes=(0,)),
    case(aten.einsum.default, "hd,a...d->...ha", [SQUARE, CUBE], axes=(0, 1, 2)),
    case(aten.einsum.default, "iij->ij", [CUBE], axes=(1,)),
    case(aten.einsum.default, "...,...->...", [CUBE, SQUARE], axes=(0,)),
    case(aten.conv1d.default, CUBE, real(N, N, 3), ROW, axes=(1,)),
    case(aten.conv1d.default, SQUARE, real(N, N, 1), axes=(0,)),
    case(aten.conv1d.default, CUBE, real(N, 1, 3), ROW, [1], [1], [1], N, axes=(1,)),
    case(aten.conv1d.padding, CUBE, real(N, N, 3), ROW, [1], "same", axes=(1,)),
    case(aten.conv2d.default, IMAGE, real(N, 2, 1, 1), ROW, [1, 1], [0, 0], [1, 1], 2, axes=(1,)),
    case(aten.conv2d.default, IMAGE, real(N, N, 3, 3), None, [2, 1], [1, 1], axes=(0, 1)),
    case(aten.conv2d.padding, IMAGE, real(N, N, 2, 2), ROW, [1, 1], "valid", axes=(1,)),
    case(aten.conv3d.default, real(2, N, N, N, N), real(N, N, 1, 1, 1), ROW, axes=(1,)),
    case(aten.conv3d.padding, real(2, N, N, N, N), real(N, N, 3, 3, 3), ROW, [1] * 3, "same", axes=(1,)),
    case(aten.conv_transpose1d.default, CUBE, real(N, N, 2), ROW, [2], axes=(1,)),
    case(aten.conv_transpose1d.default, CUBE, real(N, 2, 2), ROW, [1], [0], [0], 2, axes=(1,)),
    case(
        aten.conv_transpose2d.input,
        real(2, 6, N, N),
        real(6, 2, 2, 2),
        None,
        [2, 2],
        [1, 1],
        [1, 1],
        3,
        axes=(0, 1),
    ),
    case(
        aten.convolution.default,
        IMAGE,
        real(N, N, 2, 2),
        ROW,
        [1, 1],
        [0, 0],
        [1, 1],
        False,
        [0, 0],
        1,
        axes=(1,),
    ),
    case(
        aten.convolution.default,
        IMAGE,
        real(N, 2, 2, 2),
        None,
        [1, 1],
        [1, 1],
        [1, 1],
        False,
        [0, 0],
        2,
        axes=(0, 1),
    ),
    case(
        aten.convolution.default,
        IMAGE,
        real(N, 1, 2, 2),
        ROW,
        [1, 1],
        [0, 0],
        [1, 1],
        True,
        [0, 0],
        N,
        axes=(1,),
    ),
    case(aten.conv_transpose2d.input, IMAGE, real(N, N, 2, 2), ROW, [2, 2], axes=(1,)),
    case(aten.conv_transpose2d.input, CUBE, real(N, N, 1, 1), axes=(0,)),
    case(aten.conv_transpose3d.input, real(2, N, 2, 2, 2), real(N, N, 1, 1, 1), ROW, axes=(1,)),
    case(aten.embedding.default, SQUARE, index(N, N), axes=(2,)),
    case(aten.embedding.default, SQUARE, index(N), 1, axes=(1,)),
    case(aten.embedding.default, SQUARE, index(), axes=(0,)),
]

REDUCE = [
    case(aten.mean.dim, CUBE, [-1], axes=(0, 1)),
    case(aten.mean.dim, CUBE, [0, -1], axes=(0,)),
    case(aten.mean.dim, CUBE, [1], True, axes=(0, 2)),
    case(aten.mean.dim, CUBE, [], True),
    case(aten.sum.dim_IntList, CUBE, [0], axes=(0, 1)),
    case(aten.sum.dim_IntList, CUBE, [-2], True, axes=(0, 2)),
    case(aten.sum.dim_IntList, CUBE, None, True),
    case(aten.sum.dim_IntList, index(N, N), [0], dtype=torch.float64),
    case(aten.upsample_nearest1d.vec, CUBE, [8], None, axes=(0, 1)),
    case(aten.upsample_linear1d.vec, CUBE, [8], True, None, axes=(0, 1)),
    case(aten.upsample_nearest2d.vec, IMAGE, None, [2.0, 2.0], axes=(0, 1)),
    case(aten.upsample_bilinear2d.vec, IMAGE, [N, 6], False, None, axes=(0, 1)),
    case(aten.upsample_bicubic2d.vec, IMAGE, [N, N], True, None, axes=(0, 1)),
    case(aten.upsample_nearest2d.default, IMAGE, [N, 8], axes=(0, 1)),
    case(aten.upsample_bilinear2d.default, IMAGE, [6, 6], True, axes=(0, 1)),
    case(aten.upsample_bicubic2d.default, IMAGE, [6, 6], False, axes=(0, 1)),
    case(aten.avg_pool1d.default, CUBE, [3], [1], [1], axes=(0, 1)),
    case(aten.avg_pool1d.default, SQUARE, [3], [1], [1], axes=(0,)),
    case(aten.avg_pool2d.default, IMAGE, [3, 3], [1, 1], [1, 1], axes=(0, 1)),
    case(aten.avg_pool2d.default, CUBE, [3, 3], [1, 1], [1, 1], False, False, 5, axes=(0,)),
    case(aten.avg_pool2d.default, IMAGE, [3, 3], [2, 2], [1, 1], False, False, axes=(0, 1)),
    case(aten.avg_pool2d.default, IMAGE, [3, 3], [2, 2], [0, 0], True, True, axes=(0, 1)),
    case(aten.avg_pool2d.default, IMAGE, [3, 3], [2, 2], [1, 1], True, False, axes=(0, 1)),
    case(aten.avg_pool1d.default, CUBE, [3], [2], [0], True, axes=(0, 1)),
    case(aten.adaptive_avg_pool1d.default, CUBE, [N], axes=(0, 1)),
    case(aten.adaptive_avg_pool2d.default, IMAGE, [2, N], axes=(0, 1)),
    case(aten.adaptive_avg_pool2d.default, CUBE, [N, 2], axes=(0,)),
    case(aten.masked_fill.Scalar, CUBE, mask(N, N, 1), 0, axes=(2,)),
    case(aten.masked_fill.Scalar, CUBE, mask(N, N), 0.0, axes=(0,)),
    case(aten.masked_fill.Scalar, CUBE, mask(N, N, 1), 1e-3),
    case(aten.masked_fill.Scalar, ROW, mask(N, N, 1), 0),
    case(aten.where.self, mask(N, N, 1), CUBE, CUBE * 2, axes=(2,)),
    case(aten.where.self, mask(N, 1), CUBE, CUBE, axes=(0, 2)),
    case(aten.where.self, mask(N, N, 1), CUBE, real()),
    case(aten.where.self, mask(N, N, N), CUBE, CUBE * 2),
    case(aten.where.self, mask(N, N, 1), CUBE, real(N, N, 1)),
    case(aten.where.self, mask(N, 1, 1), CUBE, real(N, N, 1), axes=(1,)),
]

INDEXED = [
    case(aten.index_add.default, CUBE, 0, index(3), real(3, N, N) * 2, axes=(1, 2)),
    case(aten.index_add.default, CUBE, -1, index(N), real(N, N, N) * 2, axes=(0, 1), alpha=-3),
    case(aten.index_add.default, ROW, 0, index(N), real(N) * 2),
    case(aten.index_copy.default, CUBE, 1, torch.tensor([2, 0]), real(N, 2, N), axes=(0, 2)),
    case(aten.index_put.default, CUBE, [index(3)], real(3, N, N), axes=(2,)),
    case(aten.index_put.default, CUBE, [index(3), index(3)], ROW, True, axes=(2,)),
    case(aten.index_put.default, CUBE, [mask(N, N)], ROW, axes=(2,)),
    case(aten.index_put.default, CUBE, [mask(N, N, N)], real()),
    case(aten.index_put.default, CUBE, [mask(N)], real(N, 1)),
    case(aten.index_put.default, SQUARE, [index(N), index(N)], ROW),
    case(aten.masked_scatter.default, CUBE, mask(N, N, 1), real(20, N), axes=(2,)),
    case(aten.masked_scatter.default, CUBE, mask(N, 1), real(2, N, N) * 2, axes=(2,)),
    case(aten.masked_scatter.default, CUBE, mask(N, N, N), real(20, N)),
    case(aten.masked_scatter.default, CUBE, mask(N, N, 1), real(20 * N)),
    case(aten.masked_scatter.default, ROW, mask(N, N, 1), real(20, N)),
]

CASES = [*ELEMENTWISE, *LAYOUT, *LISTS, *LINEAR, *REDUCE, *INDEXED]

#: Operators that are not linear in the channels, or mix them, and must have no row.
NEVER = (
    aten.softmax.int, aten.log_softmax.int, aten.relu.default, aten.gelu.default, aten.silu.default,
    aten.tanh.default, aten.sigmoid.default, aten.exp.default, aten.abs.default, aten.sqrt.default,
    aten.pow.Tensor_Scalar, aten.pow.Scalar, aten.reciprocal.default, aten.rsub.Scalar, aten.add.Scalar,
    aten.sub.Scalar, aten.max.dim, aten.max.default, aten.amax.default, aten.min.dim, aten.maximum.default,
    aten.minimum.default, aten.clamp.default, aten.topk.default, aten.sort.default, aten.argmax.default,
    aten.cumsum.default, aten.cumprod.default, aten.prod.dim_int, aten.var.correction, aten.std.correction,
    aten.norm.ScalarOpt_dim, aten.mean.default, aten.sum.default, aten.round.default, aten.floor.default,
    aten.div.Tensor_mode, aten.remainder.Tensor, aten.fmod.Tensor, aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default, aten.channel_shuffle.default, aten.max_pool2d.default,
    aten.max_pool1d.default, aten.scatter.src, aten.scatter_add.default, aten.gather.default,
    aten.masked_fill.Tensor, aten.where.ScalarSelf, aten.where.ScalarOther,
    aten.where.Scalar, aten.tril.default, aten.triu.default,
    aten.diagonal.default, aten.batch_norm.default, aten.group_norm.default, aten.instance_norm.default,
    aten.layer_norm.default, aten.rms_norm.default, aten.scaled_dot_product_attention.default,
    aten.bernoulli.p, aten.rand_like.default, aten.ones_like.default, aten.full_like.default,
    aten.empty_like.default, aten.as_strided.default, aten.view.dtype, aten.add_.Tensor, aten.mul_.Tensor,
    aten.copy_.default, aten.masked_fill_.Scalar, aten.relu_.default, aten.alpha_dropout.default,
    aten.embedding_bag.default, aten.logsumexp.default, aten.prelu.default, aten.leaky_relu.default,
    aten.elu.default, aten.erf.default, aten.glu.default, aten.bilinear.default, aten.cdist.default,
    aten.cross.default, aten.kron.default, aten.outer.default, aten.complex.default,
    aten.view_as_real.default, aten.real.default, aten.imag.default, aten.sign.default,
)  # fmt: skip

ALL_TARGETS = {c.target for c in CASES} | {operator.getitem}
