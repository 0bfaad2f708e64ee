"""The networks, one for each rule and form; each is shown before and after one stage of the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normfuse.capture.exported import program_of
from normfuse.options import Options
from normfuse.passes.catalogue import CATALOGUE, RULES
from normfuse.passes.listings import Listings
from normfuse.passes.pipeline import run_pipeline
from normfuse.passes.rotate import give_rotation
from tests.passes.affine_cases import Net, randomised

D = 4
FOLDER = Path(__file__).parent


class Network(Net):
    """Of one argument, by this name."""

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


@dataclass(frozen=True)
class Golden:
    """A network, the stage that is shown and the rules that run."""

    stage: str
    run: Callable[..., Any]
    held: dict[str, Any]
    args: tuple[Tensor, ...]
    rules: tuple[str, ...]
    dtype: torch.dtype = torch.float64
    precise: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.run.__name__

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}.txt"

    def text(self) -> str:
        """What the file has to say."""
        model = randomised(Network(self.run, self.held)).to(self.dtype)
        args = tuple(a.to(self.dtype) for a in self.args)
        with torch.no_grad():
            program = program_of(torch.export.export(model, args, strict=False))
        seen = Listings()
        options = Options.checked({"only": list(self.rules), **self.options}, prefix="")
        if options.rotation is not None:
            give_rotation(program, options.rotation)
        run_pipeline(program, options, seen, precise=self.precise)
        before, after = seen.around(self.stage)
        title = " ".join((self.run.__doc__ or "").split())
        claim = CATALOGUE.get(self.stage)
        equation = f"\n{claim.equation}" if claim is not None else ""
        return f"{title}{equation}\n\n=== before {self.stage}\n{before}\n\n=== after {self.stage}\n{after}\n"


FOUND: list[Golden] = []


def golden(stage: str, *args: Tensor, rules: tuple[str, ...] | None = None, **settings: Any) -> Any:
    """Register a network's forward; its docstring is the title, ``held`` its modules and parameters."""
    own = (stage,) if stage in {rule.name for rule in RULES} else ()

    def register(run: Callable[..., Any]) -> Callable[..., Any]:
        kept = {key: settings.pop(key) for key in ("dtype", "precise", "options") if key in settings}
        FOUND.append(Golden(stage, run, settings, args, own if rules is None else rules, **kept))
        return run

    return register


def tokens(width: int = D) -> Tensor:
    return torch.ones(2, 3, width)


def image() -> Tensor:
    return torch.ones(2, D, 5, 5)


def linear(inner: int = D, outer: int = D, **kwargs: Any) -> nn.Linear:
    return nn.Linear(inner, outer, **kwargs)


@golden("functionalize", tokens(), lin=linear())
def functionalize_an_addition_in_place(s: Any, x: Tensor) -> Tensor:
    """An update of a value that the graph made becomes an ordinary operator."""
    y = s.lin(x)
    y += x
    return y


@golden("canonicalize", tokens(), lin=linear(), dropout=nn.Dropout(0.1))
def canonicalize_what_does_nothing(s: Any, x: Tensor) -> Tensor:
    """Dropout disappears in evaluation."""
    return s.lin(s.dropout(x))


@golden("lift", tokens(), gamma=nn.Parameter(torch.ones(D)))
def lift_a_norm_written_by_hand(s: Any, x: Tensor) -> Tensor:
    """The operators of an RMSNorm become one node that says what it is."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * s.gamma


@golden(
    "recentre", tokens(), lin=linear(), up=linear(), down=linear(), one=nn.LayerNorm(D), two=nn.LayerNorm(D)
)
def recentre_a_linear_stream(s: Any, x: Tensor) -> Tensor:
    """All that writes the stream loses its mean, and the norms of it need not remove any."""
    h = s.lin(x)
    h = h + s.down(torch.relu(s.up(s.one(h))))
    return s.two(h)


@golden("recentre", tokens(), lin=linear(), down=linear(), one=nn.LayerNorm(D), two=nn.LayerNorm(D))
def recentre_behind_one_explicit_centring(s: Any, x: Tensor) -> Tensor:
    """What no weight writes is centred once, where the most norms read it."""
    h = torch.relu(s.lin(x))
    return s.two(h + s.down(s.one(h)))


@golden("recentre", tokens(), lin=linear(), norm=nn.LayerNorm(D))
def recentre_what_the_model_centres_itself(s: Any, x: Tensor) -> Tensor:
    """Where weights write no mean, a subtraction of the mean has nothing left to do."""
    h = s.lin(x)
    return s.norm(h - h.mean(-1, keepdim=True))


@golden("recentre", tokens(), lin=linear(), gamma=nn.Parameter(torch.ones(D)), norm=nn.LayerNorm(D))
def recentre_through_a_layer_scale(s: Any, x: Tensor) -> Tensor:
    """A factor of each channel joins the weight before it, and its multiplication disappears."""
    return s.norm(s.gamma * s.lin(x))


@golden("fold_affine", image(), conv=nn.Conv2d(D, D, 3), norm=nn.BatchNorm2d(D))
def fold_affine_before(s: Any, x: Tensor) -> Tensor:
    """A norm with stored statistics goes into the convolution that writes what it reads."""
    return torch.relu(s.norm(s.conv(x)))


@golden("fold_affine", image(), conv=nn.Conv2d(D, D, 3), norm=nn.BatchNorm2d(D))
def fold_affine_behind(s: Any, x: Tensor) -> Tensor:
    """A norm with stored statistics goes into the convolution that reads it."""
    return s.conv(s.norm(torch.relu(x)))


@golden("fold_affine", image(), conv=nn.Conv2d(D, D, 3, padding=1), norm=nn.BatchNorm2d(D))
def fold_affine_beside(s: Any, x: Tensor) -> Tensor:
    """A norm with stored statistics goes into the convolution that it is added to."""
    x = torch.relu(x)
    return s.norm(x) + s.conv(x)


@golden("fold_constants", image(), conv=nn.Conv2d(D, D, 3))
def fold_constants_of_a_standardised_weight(s: Any, x: Tensor) -> Tensor:
    """A weight that the model standardises at every call is standardised once."""
    w = s.conv.weight
    mean = w.mean((1, 2, 3), keepdim=True)
    w = (w - mean) / (w.var((1, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    return F.conv2d(x, w, s.conv.bias)


@golden("fold_nested", tokens(), norm=nn.RMSNorm(D, eps=1e-5))
def fold_nested_of_two_rms_norms(s: Any, x: Tensor) -> Tensor:
    """A norm that a norm alone reads goes into it; the eps and a factor are those of both."""
    return s.norm(F.rms_norm(x, (D,), None, 1e-6))


@golden(
    "drop_inner", tokens(), one=nn.RMSNorm(D, eps=1e-6), two=nn.RMSNorm(D, eps=1e-6), lin=linear(bias=False),
    options={"allow": "approximate"},
)  # fmt: skip
def drop_inner_behind_a_weight(s: Any, x: Tensor) -> Tensor:
    """A norm that a norm reads through a weight is left out, where approximate rules are allowed."""
    return s.two(s.lin(s.one(x)))


@golden("fold_scale", tokens(), norm=nn.LayerNorm(D), lin=linear(bias=False))
def fold_scale_of_a_layer_norm(s: Any, x: Tensor) -> Tensor:
    """Weight and bias of a LayerNorm go into what reads it, where a bias appears."""
    return s.lin(s.norm(torch.relu(x)))


@golden("fold_scale", tokens(), norm=nn.RMSNorm(D, eps=1e-6), q=linear(bias=False), k=linear(bias=False))
def fold_scale_of_an_rms_norm(s: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The weight of an RMSNorm goes into all that reads it."""
    x = s.norm(torch.relu(x))
    return s.q(x), s.k(x)


@golden(
    "carry_shift", tokens(), norm=nn.LayerNorm(D), q=linear(), k=linear(bias=False), v=linear(bias=False),
    out=linear(), rules=("fold_scale", "carry_shift"),
)  # fmt: skip
def carry_shift_through_attention(s: Any, x: Tensor) -> Tensor:
    """Keys and values need no bias for that of a norm; the projection behind attention takes it."""
    x = s.norm(torch.relu(x))
    q, k, v = (f(x).view(2, 3, 2, 2).transpose(1, 2) for f in (s.q, s.k, s.v))
    return s.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 3, D))


@golden(
    "merge_norms", tokens(), one=nn.LayerNorm(D), two=nn.LayerNorm(D), up=linear(), q=linear(),
    rules=("fold_scale", "merge_norms"),
)  # fmt: skip
def merge_norms_of_a_parallel_block(s: Any, x: Tensor) -> Tensor:
    """What is left of two norms of one value, whose weights their readers took, is computed once."""
    x = torch.relu(x)
    return s.q(s.one(x)) + torch.relu(s.up(s.two(x)))


@golden(
    "settle_shifts", image(), conv=nn.Conv2d(D, D, 3), norm=nn.BatchNorm2d(D),
    rules=("fold_affine",), dtype=torch.float32, precise=True,
)  # fmt: skip
def settle_a_shift_behind_the_convolution(s: Any, x: Tensor) -> Tensor:
    """Where precision asks for it, the shift of a folded norm is added behind the sum and not before."""
    return torch.relu(s.norm(s.conv(x)))


@golden("hoist", tokens(), lin=linear(), norm=nn.LayerNorm(D), rules=("recentre",))
def hoist_the_algebra_on_weights(s: Any, x: Tensor) -> Tensor:
    """What is made of weights becomes an input, computed once."""
    return s.norm(s.lin(x))


@golden("lower", tokens(), lin=linear(), norm=nn.LayerNorm(D), rules=("recentre",))
def lower_to_the_native_operator(s: Any, x: Tensor) -> Tensor:
    """What is left of a norm is written out as the operator that every runtime knows."""
    return s.norm(s.lin(x))


@golden("fold_factor", tokens(), lin=linear(), norm=nn.LayerNorm(D), out=linear())
def fold_factor_before_and_behind_a_norm(s: Any, x: Tensor) -> Tensor:
    """A number before a norm goes into its eps, and one behind it into its weight and bias."""
    return torch.relu(s.norm(-3 * torch.relu(x)) * 0.5)


def _stream(s: Any, x: Tensor) -> Tensor:
    h = s.lin(x)
    h = h + s.down(torch.relu(s.up(s.one(h))))
    return s.out(s.two(h))


WHOLE = {
    "lin": linear(3), "up": linear(D, 5), "down": linear(5, D), "out": linear(D, 2),
    "one": nn.LayerNorm(D), "two": nn.LayerNorm(D),
}  # fmt: skip


@golden("compress", tokens(3), rules=("recentre", "fold_scale", "compress"),
    options={"target": "crms_norm"}, **WHOLE)  # fmt: skip
def compress_by_leaving_out_the_last_coordinate(s: Any, x: Tensor) -> Tensor:
    """Writers lose a row, readers a column, and the norms see one coordinate less."""
    return _stream(s, x)


@golden("compress", tokens(3), rules=("recentre", "fold_scale", "compress"),
    options={"target": "crms_norm", "crms_basis": "orthonormal"}, **WHOLE)  # fmt: skip
def compress_in_an_orthonormal_basis(s: Any, x: Tensor) -> Tensor:
    """In a basis that keeps lengths the norms are plain ones, with another eps and a gain for readers."""
    return _stream(s, x)


@golden("rotate", tokens(3), rules=("fold_scale", "rotate"),
    options={"rotation": torch.tensor([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])},
    **(WHOLE | {"one": nn.RMSNorm(D), "two": nn.RMSNorm(D)}))  # fmt: skip
def rotate_a_stream(s: Any, x: Tensor) -> Tensor:
    """Writers turn, readers turn back."""
    return _stream(s, x)
