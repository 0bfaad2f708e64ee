"""The identities behind norms with stored statistics and norms of weights.

A convolution is written out as a matrix per tap; what lies outside of its input is zero.
"""

from __future__ import annotations

import sympy
from sympy import Expr, Matrix

from tests.proofs.identities import Pairs, eps, pairs, proof, symbols

__all__ = ["Stored", "conv", "conv_transpose", "grouped", "standardised"]


class Stored:
    """A norm in evaluation, spelled as its definition says: subtract, divide, scale, add."""

    def __init__(self, d: int, name: str = "", added: Expr = eps, skip: bool = False) -> None:
        self.scale, self.shift, self.mean = (symbols(f"{n}{name}", d) for n in ("gamma", "beta", "mu"))
        self.variance = Matrix(d, 1, lambda i, _: sympy.Symbol(f"v{name}_{i}", positive=True))
        self.skip = sympy.Symbol(f"alpha{name}", real=True) if skip else sympy.Integer(0)
        self.added, self.width = added, d

    def __call__(self, x: Matrix) -> Matrix:
        """Of columns, each of them one position."""
        return Matrix(self.width, x.cols, lambda i, j: self._of(i, x[i, j]))

    def _of(self, i: int, value: Expr) -> Expr:
        normed = (value - self.mean[i]) / sympy.sqrt(self.variance[i] + self.added)
        return normed * self.scale[i] + self.shift[i] + self.skip * value

    @property
    def factor(self) -> Matrix:
        """D = diag(scale / sqrt(variance + eps) + skip)"""
        entries = zip(self.scale, self.variance, strict=True)
        return sympy.diag(*(g / sympy.sqrt(v + self.added) + self.skip for g, v in entries))

    @property
    def of_zero(self) -> Matrix:
        return self(sympy.zeros(self.width, 1))


def repeated(vector: Matrix, columns: int) -> Matrix:
    return vector * sympy.ones(1, columns)


def conv(taps: list[Matrix], x: Matrix, bias: Matrix, padding: int = 0) -> Matrix:
    """One-dimensional, as sums of one matrix per tap over a window of positions."""
    zeros = sympy.zeros(x.rows, padding)
    padded = zeros.row_join(x).row_join(zeros) if padding else x
    count = padded.cols - len(taps) + 1
    made = repeated(bias, count)
    for k, tap in enumerate(taps):
        made += tap * padded[:, k : k + count]
    return made


def conv_transpose(taps: list[Matrix], x: Matrix, bias: Matrix, stride: int = 2) -> Matrix:
    """Each position writes every tap, ``stride`` apart; a tap maps the channels as it would in a linear."""
    made = repeated(bias, (x.cols - 1) * stride + len(taps))
    for j in range(x.cols):
        for k, tap in enumerate(taps):
            column = j * stride + k
            made[:, column] = made[:, column] + tap * x[:, j]
    return made


def grouped(blocks: list[Matrix]) -> Matrix:
    """The matrix of a grouped operator."""
    return sympy.diag(*blocks)


def standardised(weight: Matrix, added: Expr = eps) -> Matrix:
    """Each row less its mean, over its deviation."""
    rows = []
    for i in range(weight.rows):
        row = weight[i, :]
        mean = sum(row) / weight.cols
        variance = sum((e - mean) ** 2 for e in row) / weight.cols
        rows.append([(e - mean) / sympy.sqrt(variance + added) for e in row])
    return Matrix(rows)


def _taps(d: int, count: int, name: str = "W", inner: int = 2) -> list[Matrix]:
    return [symbols(f"{name}{k}", d, inner) for k in range(count)]


@proof("fold_affine")
def into_the_linear_before(d: int) -> Pairs:
    """A(W a + b) = (D W) a + A(b)"""
    norm, w, a, b = Stored(d), symbols("W", d, 2), symbols("a", 2), symbols("b", d)
    return pairs(norm(w * a + b), norm.factor * w * a + norm(b))


@proof("fold_affine")
def into_a_linear_without_bias(d: int) -> Pairs:
    """A(W a) = (D W) a + A(0): a bias appears."""
    norm, w, a = Stored(d), symbols("W", d, 2), symbols("a", 2)
    return pairs(norm(w * a), norm.factor * w * a + norm.of_zero)


@proof("fold_affine")
def into_the_convolution_before(d: int) -> Pairs:
    """Each tap takes D and the bias A, with zeros around the input as well."""
    norm, taps, x, b = Stored(d), _taps(d, 3), symbols("x", 2, 3), symbols("b", d)
    folded = [norm.factor * tap for tap in taps]
    return pairs(norm(conv(taps, x, b, padding=1)), conv(folded, x, norm(b), padding=1))


@proof("fold_affine")
def into_the_transposed_convolution_before(d: int) -> Pairs:
    norm, taps, x, b = Stored(d), _taps(d, 3), symbols("x", 2, 2), symbols("b", d)
    folded = [norm.factor * tap for tap in taps]
    return pairs(norm(conv_transpose(taps, x, b)), conv_transpose(folded, x, norm(b)))


@proof("fold_affine")
def into_groups_before(d: int) -> Pairs:
    """D of all channels falls apart into one factor for the rows of each group."""
    norm, x, b = Stored(2 * d), symbols("x", 4), symbols("b", 2 * d)
    blocks = _taps(d, 2)
    parts = [norm.factor[:d, :d], norm.factor[d:, d:]]
    folded = grouped([part * block for part, block in zip(parts, blocks, strict=True)])
    return pairs(norm(grouped(blocks) * x + b), folded * x + norm(b))


@proof("fold_affine")
def into_several_writers(d: int) -> Pairs:
    """A(sum_k W_k a_k) = sum_k (D W_k) a_k + A(0): the shift goes into one of them."""
    norm = Stored(d)
    writers = [(symbols(f"W{k}", d, 2), symbols(f"a{k}", 2), symbols(f"b{k}", d)) for k in range(2)]
    (w, a, b), (v, c, e) = writers
    return pairs(norm(w * a + b + v * c + e), norm.factor * w * a + norm(b) + norm.factor * (v * c + e))


@proof("fold_affine")
def into_the_readers(d: int) -> Pairs:
    """W A(x) + b = (W D) x + (b + W A(0))"""
    norm, w, x, b = Stored(d), symbols("W", 2, d), symbols("x", d), symbols("b", 2)
    return pairs(w * norm(x) + b, w * norm.factor * x + (b + w * norm.of_zero))


@proof("fold_affine")
def over_a_sum_into_the_next_norm(d: int) -> Pairs:
    """B(A(x) + W a + b) = B'(x + (W a + b) / D), with the statistics of B in units of x."""
    first, second = Stored(d, "1"), Stored(d, "2", skip=True)
    x, written = symbols("x", d), symbols("W", d, 2) * symbols("a", 2) + symbols("b", d)
    gain, moved, taken = first.factor, first.of_zero, Stored(d, "3", sympy.Integer(0))
    for i in range(d):
        size = sympy.Abs(gain[i, i])
        taken.mean[i] = (second.mean[i] - moved[i]) / gain[i, i]
        taken.variance[i] = (second.variance[i] + second.added) / size**2
        taken.scale[i] = second.scale[i] * gain[i, i] / size
        taken.shift[i] = second.shift[i] + second.skip * moved[i]
    summed = x + gain.inv() * written
    return pairs(second(first(x) + written), taken(summed) + second.skip * gain * summed)


@proof("fold_affine")
def into_a_convolution_behind(d: int) -> Pairs:
    """Without padding the bias takes what all taps together make of the shift."""
    norm, taps, x, b = Stored(d), _taps(2, 2, inner=d), symbols("x", d, 3), symbols("b", 2)
    folded = [tap * norm.factor for tap in taps]
    shifted = b + sum(taps, sympy.zeros(2, d)) * norm.of_zero
    return pairs(conv(taps, norm(x), b), conv(folded, x, shifted))


@proof("fold_affine")
def without_a_shift_into_a_convolution_that_pads(d: int) -> Pairs:
    """Zeros are mapped onto zeros where there is neither mean nor shift; transposed as well."""
    norm, taps, x, b = Stored(d), _taps(2, 3, inner=d), symbols("x", d, 2), symbols("b", 2)
    norm.shift, norm.mean = sympy.zeros(d, 1), sympy.zeros(d, 1)
    folded = [tap * norm.factor for tap in taps]
    found = pairs(conv(taps, norm(x), b, padding=1), conv(folded, x, b, padding=1))
    return found + pairs(conv_transpose(taps, norm(x), b), conv_transpose(folded, x, b))


@proof("fold_affine")
def rep_batch_norm(d: int) -> Pairs:
    """A(x) + alpha x: before, the bias brings its alpha b along; behind, alpha adds to the factor alone."""
    norm, w, a, b = Stored(d, skip=True), symbols("W", d, 2), symbols("a", 2), symbols("b", d)
    plain = Stored(d)
    bias = plain(b) + norm.skip * b
    found = pairs(norm(w * a + b), norm.factor * w * a + bias)
    v, x, c = symbols("V", 2, d), symbols("x", d), symbols("c", 2)
    return found + pairs(v * norm(x) + c, v * norm.factor * x + (c + v * plain.of_zero))


@proof("fold_affine")
def norm_of_a_norm(d: int) -> Pairs:
    """A2(A1(W a + b)) = (D2 D1 W) a + A2(A1(b))"""
    first, second = Stored(d, "1"), Stored(d, "2", sympy.Symbol("eps2", positive=True))
    w, a, b = symbols("W", d, 2), symbols("a", 2), symbols("b", d)
    return pairs(second(first(w * a + b)), second.factor * first.factor * w * a + second(first(b)))


@proof("fold_affine")
def beside_a_weight(d: int) -> Pairs:
    """A(x) + W x + b = (D + W) x + (b + A(0)), at the middle tap of a convolution that pads."""
    norm, b, x = Stored(d), symbols("b", d), symbols("x", d, 2)
    w, v = symbols("W", d, d), symbols("x", d)
    found = pairs(norm(v) + w * v + b, (norm.factor + w) * v + (b + norm.of_zero))
    taps = _taps(d, 3, inner=d)
    folded = [taps[0], taps[1] + norm.factor, taps[2]]
    left = norm(x) + conv(taps, x, b, padding=1)
    return found + pairs(left, conv(folded, x, b + norm.of_zero, padding=1))


@proof("fold_affine")
def beside_a_weight_that_is_multiplied(d: int) -> Pairs:
    """p (W x + b) + q g A(x) = p ((W + (q / p) g D) x + (b + (q / p) g A(0)))"""
    norm, b, w, x = Stored(d), symbols("b", d), symbols("W", d, d), symbols("x", d)
    p, q = sympy.symbols("p q", positive=True)
    g = sympy.diag(*symbols("g", d))
    left = p * (w * x + b) - q * g * norm(x)
    return pairs(left, p * ((w - q / p * g * norm.factor) * x + (b - q / p * g * norm.of_zero)))


@proof("fold_affine")
def of_a_weight_and_its_own_input(d: int) -> Pairs:
    """A(p (W x + b) + q x) = D p (W + (q / p) I) x + A(p b), and at the middle tap of a convolution."""
    norm, b, w, x = Stored(d), symbols("b", d), symbols("W", d, d), symbols("x", d)
    p, q = sympy.symbols("p q", positive=True)
    own = q / p * sympy.eye(d)
    found = pairs(norm(p * (w * x + b) - q * x), norm.factor * p * (w - own) * x + norm(p * b))
    taps, image = _taps(d, 3, inner=d), symbols("x", d, 2)
    folded = [norm.factor * tap for tap in (taps[0], taps[1] + sympy.eye(d), taps[2])]
    left = norm(conv(taps, image, b, padding=1) + image)
    return found + pairs(left, conv(folded, image, norm(b), padding=1))


@proof("fold_affine")
def of_a_constant(d: int) -> Pairs:
    """A(c + W a) = A(c) + D W a, so that a constant that is added takes the map like a bias."""
    norm, c, w, a = Stored(d), symbols("c", d), symbols("W", d, 2), symbols("a", 2)
    return pairs(norm(c + w * a), norm(c) + norm.factor * (w * a))


@proof("fold_constants")
def a_norm_of_a_weight(d: int) -> Pairs:
    """standardise(W) x is (W x - mean(W) sum(x)) / sqrt(var(W) + eps), row by row, for every x."""
    w, x = symbols("W", d, 2), symbols("x", 2)
    mean = w * sympy.ones(2, 1) / 2
    squares = w.multiply_elementwise(w) * sympy.ones(2, 1) / 2
    variance = (squares - mean.multiply_elementwise(mean)).applyfunc(sympy.expand)
    roots = sympy.diag(*(1 / sympy.sqrt(v + eps) for v in variance))
    return pairs(_expanded(standardised(w)) * x, roots * (w * x - mean * sum(x)))


def _expanded(weight: Matrix) -> Matrix:
    """With one canonical order of terms under each root."""
    return weight.replace(
        lambda e: isinstance(e, sympy.Pow) and not e.exp.is_Integer,
        lambda e: sympy.Pow(sympy.expand(e.base), e.exp),
    )
