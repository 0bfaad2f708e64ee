"""The rules, in the order in which they run, and whatever else claims that a change is none."""

from __future__ import annotations

from importlib import import_module

from normfuse.errors import OptionError
from normfuse.options import PREFIX, Options
from normfuse.passes.rule import Claim, Numerics, Rule
from normfuse.rule_names import RULE_NAMES

__all__ = ["CATALOGUE", "RULES", "STAGES", "check_rules"]


def _rule(name: str) -> Rule:
    """The value ``RECENTRE`` of the module ``recentre``."""
    rule: Rule = getattr(import_module(f"normfuse.passes.{name}"), name.upper())
    return rule


RULES = tuple(map(_rule, RULE_NAMES))

#: What happens to every graph before the rules, whatever the options say.
STAGES = (
    Claim("functionalize", Numerics.BITWISE, "y = add_(x, r)  =>  y = add(x, r)"),
    Claim(
        "spell_out",
        Numerics.REASSOCIATED,
        "attention(x) = W_o softmax(q k' / sqrt(d)) v + b_o,  [q, k, v] = W x + b",
        "Vaswani et al. 2017, arXiv 1706.03762, equation 1",
        ("a known mask: it hides positions for all heads, for all queries, or for each", "on a CPU"),
    ),
    Claim(
        "canonicalize",
        Numerics.BITWISE,
        "to(x, x.dtype) = x,  to(to(x, wider), x.dtype) = x,  dropout(x, p, train=False) = x",
    ),
    Claim("lift", Numerics.BITWISE, "a norm is the operators it was spelled with"),
)

CATALOGUE: dict[str, Claim] = {claim.name: claim for claim in (*STAGES, *RULES)}


def check_rules(options: Options, prefix: str = PREFIX) -> None:
    """Refuse options that ask for a rule by name, and leave out what it does not run without.

    Raises:
        OptionError: naming the rule and what is missing; ``prefix`` is how the caller spells options.
    """
    for rule in RULES:
        if rule.name in (options.only or ()) and not rule.serves(options.target):
            raise OptionError(
                f"{prefix}only asks for {rule.name}, which does not run with "
                f"{prefix}target={options.target!r}; leave one of the two out"
            )
    if "drop_inner" in (options.only or ()) and options.allow != "approximate":
        raise OptionError(f"{prefix}only asks for drop_inner, which needs {prefix}allow='approximate'")
    if "rotate" in (options.only or ()) and options.rotation is None:
        raise OptionError(f"{prefix}only asks for rotate, which needs a matrix: normfuse.rewrite's rotation")
