"""What a norm is, and how captured graphs are held and edited."""

from normfuse.ir.program import Input, Program, Role
from normfuse.ir.region import NormRegion, Operands, norm_of, norms_in
from normfuse.ir.spec import KINDS, NormSpec

__all__ = ["KINDS", "Input", "NormRegion", "NormSpec", "Operands", "Program", "Role", "norm_of", "norms_in"]
