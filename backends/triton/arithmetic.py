"""Functions of the Triton kernels, accurate to the last digits. T is float32 or float64. No variable is assigned a bare
number, which Triton would make float32.

Triton does not reassociate operations; it only fuses products with sums.
"""

import triton
import triton.language as tl


@triton.jit
def exp_of(d, T: tl.constexpr):
    """exp(d) for d <= 0. The hardware has 2^y, within 2 ulp. y = d log2(e) is rounded, an error of |d| roundoffs in
    the result, which its first order, exact by fused products, takes back."""
    if T == tl.float64:
        return tl.exp(d)
    else:
        y = d * 1.4426950408889634
        p = tl.exp2(y)
        e = tl.fma(y, 1.9046542999577678e-09, tl.fma(y, -0.693147182464599609375, d))  # d - y ln 2, ln 2 in two parts
        return tl.where(d < -103.9, 0.0, tl.fma(p, e, p))  # NaN stays NaN; -inf would become one


@triton.jit
def log1p_unit(q, T: tl.constexpr):
    """log1p(q) for 0 <= q <= 1, accurate relative to itself down to q = 0: the hardware's logarithm is that nowhere
    near 1. The polynomials are the CPU kernels' (backends/cpu/polynomials.py)."""
    if T == tl.float64:
        w = q / (q + 2.0)
        y = w * w
        p = y * 0.078152889004614257 + 0.037460718977753833
        p = p * y + 0.054225891974400073
        p = p * y + 0.058671395306515987
        p = p * y + 0.066675893157246285
        p = p * y + 0.076922719824302752
        p = p * y + 0.090909099489813572
        p = p * y + 0.11111111099118386
        p = p * y + 0.1428571428580005
        p = p * y + 0.19999999999999762
        p = p * y + 0.33333333333333331
        return q - (q * w - (w + w) * (y * p))
    else:
        v = q - 0.5
        p = v * 0.00198669659 - 0.0032543436
        p = p * v + 0.00401169083
        p = p * v - 0.00674410465
        p = p * v + 0.0118477561
        p = p * v - 0.0205713852
        p = p * v + 0.0366112233
        p = p * v - 0.067687623
        p = p * v + 0.132609762
        p = p * v - 0.288527112
        return q * (p * v + 0.810930216)


@triton.jit
def log1p(s, T: tl.constexpr):
    return tl.where(s > 1, tl.log(s + 1), log1p_unit(s, T))


@triton.jit
def reciprocal(y, T: tl.constexpr):
    """To the nearest, which a plain division is in float64 alone."""
    if T == tl.float64:
        return 1 / y
    else:
        return tl.div_rn(y * 0 + 1, y)


@triton.jit
def times(weight, gap):
    """weight * gap with 0 * inf = 0."""
    return tl.where(weight == 0, 0.0, weight * gap)
