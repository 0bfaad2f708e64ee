"""The identities behind the rules, for symbolic weights, inputs and eps, at small sizes.

A proof is a list of pairs of expressions; it holds when every difference simplifies to zero. Norms are built
from their definitions here, so a proof shares nothing with the code that it is about.
"""

from __future__ import annotations

from collections.abc import Callable

import sympy
from sympy import Expr, Matrix, Rational

__all__ = ["PROOFS", "Pairs", "holds", "layer_norm", "proof", "rms_norm", "symbols"]

Pairs = list[tuple[Expr, Expr]]
PROOFS: dict[str, list[Callable[[int], Pairs]]] = {}

eps = sympy.Symbol("eps", positive=True)


def proof(rule: str) -> Callable[[Callable[[int], Pairs]], Callable[[int], Pairs]]:
    """Register a proof of a rule; it is given the width."""

    def register(function: Callable[[int], Pairs]) -> Callable[[int], Pairs]:
        PROOFS.setdefault(rule, []).append(function)
        return function

    return register


def holds(pairs: Pairs) -> bool:
    """Whether every left side is the same function as its right side."""
    return bool(pairs) and all(sympy.simplify(left - right) == 0 for left, right in pairs)


def symbols(name: str, rows: int, columns: int = 1) -> Matrix:
    return Matrix(rows, columns, lambda i, j: sympy.Symbol(f"{name}_{i}_{j}", real=True))


def centre(d: int) -> Matrix:
    """C = I - 11'/d"""
    return sympy.eye(d) - sympy.ones(d, d) * Rational(1, d)


def scaled(vector: Matrix, added: Expr) -> list[Expr]:
    """Each element over the root of the mean square plus what is added; terms in one canonical order."""
    d = vector.rows
    elements = [sympy.expand(e) for e in vector]
    mean_square = sympy.expand(sum(e**2 for e in elements) / d)
    return [e / sympy.sqrt(mean_square + added) for e in elements]


def layer_norm(h: Matrix, added: Expr = eps) -> list[Expr]:
    mean = sum(h) / h.rows
    return scaled(h.applyfunc(lambda e: e - mean), added)


def rms_norm(h: Matrix, added: Expr = eps) -> list[Expr]:
    return scaled(h, added)


def crms_norm(z: Matrix, added: Expr = eps) -> list[Expr]:
    """The norm of a vector without a mean from all of its coordinates but the last, ``-sum(z)``."""
    square = sympy.expand((sum(e**2 for e in z) + sum(z) ** 2) / (z.rows + 1))
    return [e / sympy.sqrt(square + added) for e in z]


def zero_mean(z: Matrix) -> Matrix:
    """The vector without a mean that starts like this."""
    return Matrix.vstack(z, Matrix([-sum(z)]))


def zero_mean_basis(d: int) -> Matrix:
    """The Householder reflection of ``1 / sqrt(d) - e_d`` without its last column: U'U = I, UU' = C."""
    v = sympy.ones(d, 1) / sympy.sqrt(d) - sympy.eye(d)[:, d - 1]
    reflection = sympy.eye(d) - 2 * v * v.T / v.dot(v)
    return reflection[:, :-1].applyfunc(sympy.radsimp)


def pairs(left: list[Expr] | Matrix, right: list[Expr] | Matrix) -> Pairs:
    return list(zip(list(left), list(right), strict=True))


@proof("recentre")
def weights_lose_their_mean(d: int) -> Pairs:
    """LN(sum_k W_k a_k + b_k) = RMS(sum_k (C W_k) a_k + C b_k), with the same eps, weight and bias."""
    c = centre(d)
    writers = [(symbols(f"W{k}", d, 2), symbols(f"a{k}", 2), symbols(f"b{k}", d)) for k in range(2)]
    plain, folded = sympy.zeros(d, 1), sympy.zeros(d, 1)
    for w, a, b in writers:
        plain, folded = plain + w * a + b, folded + (c * w) * a + c * b
    gamma, beta = symbols("gamma", d), symbols("beta", d)
    left = [g * n + s for g, n, s in zip(gamma, layer_norm(plain), beta, strict=True)]
    right = [g * n + s for g, n, s in zip(gamma, rms_norm(folded), beta, strict=True)]
    return pairs(left, right)


@proof("recentre")
def layer_scale_joins_the_weight(d: int) -> Pairs:
    """C (s * (W a + b)) = (C diag(s) W) a + C (s * b)"""
    c, s = centre(d), symbols("s", d)
    w, a, b = symbols("W", d, 2), symbols("a", 2), symbols("b", d)
    left = c * s.multiply_elementwise(w * a + b)
    return pairs(left.expand(), ((c * sympy.diag(*s) * w) * a + c * s.multiply_elementwise(b)).expand())


@proof("recentre")
def one_explicit_centring(d: int) -> Pairs:
    """LN(h) = RMS(h - mean(h))"""
    h = symbols("h", d)
    return pairs(layer_norm(h), rms_norm(centre(d) * h))


@proof("recentre")
def a_centred_stream_stays_one(d: int) -> Pairs:
    """C C = C, and C commutes with sums, with one factor per token and with means over tokens."""
    c, x, y = centre(d), symbols("x", d), symbols("y", d)
    factor = sympy.Symbol("t", real=True)
    found = pairs(c * c, c)
    found += pairs((c * (x + y)).expand(), (c * x + c * y).expand())
    found += pairs((c * (factor * x)).expand(), (factor * (c * x)).expand())
    return found + pairs((c * ((x + y) / 2)).expand(), ((c * x + c * y) / 2).expand())


@proof("recentre")
def a_centring_that_the_model_wrote_has_nothing_left_to_do(d: int) -> Pairs:
    """LN(h - mean(h)) = RMS(C h) and C (h - mean(h)) = C h,    h = W a + b"""
    c, w, a, b = centre(d), symbols("W", d, 2), symbols("a", 2), symbols("b", d)
    h = w * a + b
    by_hand = h.applyfunc(lambda e: e - sum(h) / d)
    found = pairs(layer_norm(by_hand), rms_norm((c * w) * a + c * b))
    return found + pairs((c * by_hand).expand(), ((c * w) * a + c * b).expand())


@proof("recentre")
def what_is_left_alone_does_not_notice(d: int) -> Pairs:
    """A LayerNorm that stays reads centred values as it read the others: LN(C h) = LN(h)."""
    h = symbols("h", d)
    return pairs(layer_norm(centre(d) * h), layer_norm(h))


@proof("compress")
def the_last_row_and_the_last_coordinate_go(d: int) -> Pairs:
    """RMS(W a + b) = E CRMS(P W a + P b),    W a + b without a mean"""
    z, drop = symbols("z", d - 1), sympy.eye(d)[:-1, :]
    x = zero_mean(z)
    return pairs(rms_norm(x), zero_mean(Matrix(crms_norm(drop * x))))


@proof("compress")
def readers_need_not_see_the_last_coordinate(d: int) -> Pairs:
    """W x = (W[:, :-1] - W[:, -1:]) x[:-1],    x without a mean"""
    w, z = symbols("W", 2, d), symbols("z", d - 1)
    less = w[:, :-1] - w[:, -1:] * sympy.ones(1, d - 1)
    return pairs((w * zero_mean(z)).expand(), (less * z).expand())


@proof("compress")
def an_orthonormal_basis_keeps_the_norm(d: int) -> Pairs:
    """U' RMS_eps(x) = g RMS_eps'(U' x),    x without a mean, g = sqrt(d / (d - 1)), eps' = eps d / (d - 1)"""
    u, x = zero_mean_basis(d), zero_mean(symbols("z", d - 1))
    ratio = Rational(d, d - 1)
    inside = rms_norm((u.T * x).applyfunc(sympy.expand), eps * ratio)
    found = pairs(u.T * u, sympy.eye(d - 1)) + pairs(u * u.T, centre(d))
    found = [(sympy.radsimp(left), right) for left, right in found]
    return found + pairs(u.T * Matrix(rms_norm(x)), [sympy.sqrt(ratio) * e for e in inside])


@proof("fold_nested")
def a_norm_of_a_norm_is_one(d: int) -> Pairs:
    """RMS_b(c N_a(h)) = g N_eps(h) for c > 0, squared: g^2 = 1 / (1 + b / c^2), eps = g^2 a b / c^2"""
    h, (a, b, c, m) = symbols("h", d), sympy.symbols("a b c m", positive=True)
    gain = 1 / (1 + b / c**2)
    found: Pairs = [(c**2 / (m + a) / (c**2 * m / (m + a) + b), gain / (m + gain * a * b / c**2))]
    for norm, read in ((layer_norm, centre(d) * h), (rms_norm, h)):
        square = sympy.expand(sum(e**2 for e in read) / d)
        found.append((sum(e**2 for e in norm(h, a)) / d, square / (square + a)))
    return found


@proof("drop_inner")
def a_norm_of_a_norm_has_an_eps_that_depends_on_the_row(d: int) -> Pairs:
    """N_b(W RMS_a(x)) = N_{b (m + a)}(W x); with b it is root((P + b) / (P + b / r)) of it, r = m + a"""
    w, x, (a, b, m, big, r) = symbols("W", d, d), symbols("x", d), sympy.symbols("a b m M r", positive=True)
    found: Pairs = [(((big + b * r) / (big + b)), (big / r + b) / (big / r + b / r))]
    row = sympy.Symbol("s", positive=True)
    for norm in (layer_norm, rms_norm):
        found += pairs(norm(w * (row * x), b), norm(w * x, b / row**2))
    return [*found, ((1 / sympy.sqrt(m + a)) ** -2 * b, b * (m + a))]


@proof("merge_norms")
def readers_of_two_norms_read_one(d: int) -> Pairs:
    """W (gamma N(h) + beta) = (W diag(gamma)) y + W beta, V (delta N(h)) = (V diag(delta)) y, y = N(h)"""
    w, v, h = symbols("W", 2, d), symbols("V", 2, d), symbols("h", d)
    gamma, beta, delta = symbols("gamma", d), symbols("beta", d), symbols("delta", d)
    found: Pairs = []
    for norm in (layer_norm, rms_norm):
        first, second, one = Matrix(norm(h)), Matrix(norm(h)), Matrix(norm(h))
        left = w * (gamma.multiply_elementwise(first) + beta)
        found += pairs(left, (w * sympy.diag(*gamma)) * one + w * beta)
        found += pairs(v * delta.multiply_elementwise(second), (v * sympy.diag(*delta)) * one)
    return found


@proof("fold_scale")
def readers_take_weight_and_bias(d: int) -> Pairs:
    """W (gamma N(h) + beta) + c = (W diag(gamma)) N(h) + (c + W beta), N with a mean or without"""
    w, c, h = symbols("W", 2, d), symbols("c", 2), symbols("h", d)
    gamma, beta = symbols("gamma", d), symbols("beta", d)
    found: Pairs = []
    for norm in (layer_norm, rms_norm):
        core = Matrix(norm(h))
        left = w * (gamma.multiply_elementwise(core) + beta) + c
        found += pairs(left, (w * sympy.diag(*gamma)) * core + (c + w * beta))
    return found


@proof("carry_shift")
def attention_passes_a_shift_of_values_and_not_of_keys(d: int) -> Pairs:
    """softmax((k + s) q) = softmax(k q), W (v + s)' softmax(a) + c = W v' softmax(a) + (c + W s), d keys"""
    q, s, k, v = symbols("q", 2), symbols("s", 2), symbols("k", d, 2), symbols("v", d, 2)
    w, c, shifts = symbols("W", 2, 2), symbols("c", 2), sympy.ones(d, 1) * s.T

    def softmax(scores: Matrix) -> Matrix:
        powers = [sympy.expand(sympy.exp(sympy.expand(score))) for score in scores]
        return Matrix(powers) / sum(powers)

    found = pairs(softmax((k + shifts) * q), softmax(k * q))
    a = softmax(symbols("a", d))
    return found + pairs(w * (v + shifts).T * a + c, w * v.T * a + (c + w * s))


def rotation(d: int) -> Matrix:
    """Turns by any angles, in the plane of each two neighbouring axes."""
    q = sympy.eye(d)
    for i in range(d - 1):
        t = sympy.Symbol(f"t_{i}", real=True)
        turn = sympy.eye(d)
        turn[i : i + 2, i : i + 2] = Matrix([[1 - t**2, -2 * t], [2 * t, 1 - t**2]]) / (1 + t**2)
        q = turn * q
    return q


@proof("rotate")
def a_norm_turns_with_its_input(d: int) -> Pairs:
    """N(Q h) = Q N(h) where Q'Q = I, for a norm of lengths alone"""
    q, h = rotation(d), symbols("h", d)
    turned, root = q * h, sympy.Symbol("r", positive=True)
    lengths = [((turned.T * turned)[0], (h.T * h)[0])]
    return pairs(q.T * q, sympy.eye(d)) + lengths + pairs(turned / root, q * (h / root))


@proof("rotate")
def weights_turn_on_both_sides(d: int) -> Pairs:
    """Q (W a + b) = (Q W) a + Q b  and  W (Q' z) = (W Q') z"""
    q, w, a, b, z = rotation(d), symbols("W", d, 2), symbols("a", 2), symbols("b", d), symbols("z", d)
    found = pairs((q * (w * a + b)).expand(), ((q * w) * a + q * b).expand())
    return found + pairs((w.T * (q.T * z)).expand(), ((w.T * q.T) * z).expand())


def bounded(h: Matrix, added: Expr, bound: Callable[[Expr, Expr], Expr]) -> list[Expr]:
    """Each element over its length with an eps that is not inside of the root."""
    length = sympy.sqrt(sympy.factor(sum(e**2 for e in h)))
    return [e / bound(length, added) for e in h]


def larger(a: Expr, b: Expr) -> Expr:
    """The maximum, in terms that can be divided by a positive factor."""
    return (a + b + sympy.Abs(sympy.factor(a - b))) / 2


@proof("fold_factor")
def a_factor_goes_into_eps(d: int) -> Pairs:
    """N_eps(c h) = sgn(c) N_{eps / c^2}(h), for every norm with eps inside of the root"""
    h, c = symbols("h", d), sympy.Symbol("c", positive=True)
    found: Pairs = []
    for norm in (layer_norm, rms_norm, crms_norm):
        without = norm(h, eps)
        found += pairs(norm(c * h, c**2 * eps), without)
        found += pairs(norm(-c * h, c**2 * eps), [-e for e in without])
    return found


@proof("fold_factor")
def a_factor_beside_a_length(d: int) -> Pairs:
    """c h / (|c h| + eps) = sgn(c) h / (|h| + eps / |c|), and so with a bound below the length"""
    h, c = symbols("h", d), sympy.Symbol("c", positive=True)
    found: Pairs = []
    for bound in (lambda length, added: length + added, larger):
        found += pairs(bounded(c * h, c * eps, bound), bounded(h, eps, bound))
        found += pairs(bounded(-c * h, c * eps, bound), [-e for e in bounded(h, eps, bound)])
    return found


@proof("fold_factor")
def what_is_added_is_divided(d: int) -> Pairs:
    """N_eps(c x + W a) = N_{eps / c^2}(x + (W / c) a)"""
    x, w, a = symbols("x", d), symbols("W", d, 2), symbols("a", 2)
    c = sympy.Symbol("c", positive=True)
    return pairs(c * x + w * a, c * (x + (w / c) * a)) + a_factor_goes_into_eps(d)


@proof("fold_factor")
def weight_and_bias_take_what_is_behind(d: int) -> Pairs:
    """k (gamma N(h) + beta) = (k gamma) N(h) + k beta"""
    h, gamma, beta = symbols("h", d), symbols("gamma", d), symbols("beta", d)
    k = sympy.Symbol("k", real=True)
    core = Matrix(layer_norm(h))
    left = k * (gamma.multiply_elementwise(core) + beta)
    return pairs(left, (k * gamma).multiply_elementwise(core) + k * beta)


@proof("lift")
def the_last_coordinate_follows_from_the_others(d: int) -> Pairs:
    """RMS(cat(z, -sum(z)))[:-1] = z / root((sum(z**2) + sum(z)**2) / d + eps), and so with the sum itself."""
    z = symbols("z", d - 1)
    plus = Matrix.vstack(z, Matrix([sum(z)]))
    return pairs(rms_norm(zero_mean(z))[:-1], crms_norm(z)) + pairs(rms_norm(plus)[:-1], crms_norm(z))


@proof("lift")
def variance_by_its_moments(d: int) -> Pairs:
    """sum((x - mean)**2) = sum(x**2) - sum(x)**2 / d"""
    x = symbols("x", d)
    mean = sum(x) / d
    return [(sum((e - mean) ** 2 for e in x), sum(e**2 for e in x) - sum(x) ** 2 / d)]


@proof("lift")
def the_mean_may_be_removed_last(d: int) -> Pairs:
    """gamma (x - mean) r + beta = x (gamma r) + (beta - mean (gamma r)),    r = 1 / root"""
    x, gamma, beta = symbols("x", d), symbols("gamma", d), symbols("beta", d)
    mean, root = sum(x) / d, sympy.sqrt(sum((e - sum(x) / d) ** 2 for e in x) / d + eps)
    left = [g * (e - mean) / root + b for g, e, b in zip(gamma, x, beta, strict=True)]
    right = [e * (g / root) + (b - mean * (g / root)) for g, e, b in zip(gamma, x, beta, strict=True)]
    return pairs(left, right)


@proof("spell_out")
def a_score_may_be_scaled_last(d: int) -> Pairs:
    """(s W_q x)' (W_k y) = s (W_q x)' (W_k y), and rows of a joint product are those of its parts."""
    s, x, y = sympy.Symbol("s", real=True), symbols("x", d), symbols("y", d)
    q, k = symbols("W_q", d, d), symbols("W_k", d, d)
    joint = Matrix.vstack(q, k) * x
    found = pairs((s * (q * x)).T * (k * y), s * ((q * x).T * (k * y)))
    return [(a.expand(), b.expand()) for a, b in found] + pairs(joint[:d, :], q * x)
