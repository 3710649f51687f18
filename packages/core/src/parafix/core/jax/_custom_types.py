from typing import TypeAlias

from jaxtyping import Array, Bool, Complex, Float, Int


# Shapes below use T (time), n (state) and `*batch`.
State: TypeAlias = Float[Array, " n"]
States: TypeAlias = Float[Array, "T n"]
BoolScalar: TypeAlias = Bool[Array, ""]
IntScalar: TypeAlias = Int[Array, ""]
FloatScalar: TypeAlias = Float[Array, ""]
Inexact: TypeAlias = Float[Array, "..."] | Complex[Array, "..."]
