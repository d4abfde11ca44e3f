"""Prints the coefficients in arithmetic.h: Chebyshev interpolation at 60 digits, nearly the best polynomials.

python backends/cpu/polynomials.py
"""

from collections.abc import Callable

from mpmath import mp, mpf

mp.dps = 60


def show(name: str, f: Callable[[mpf], mpf], low: mpf, high: mpf, degree: int, single: bool) -> None:
    """Interpolates f on [low, high] and prints powers from the highest down, with the largest relative error."""
    middle, half, n = (low + high) / 2, (high - low) / 2, degree + 1
    nodes = [middle + half * mp.cos(mp.pi * (2 * k + 1) / (2 * n)) for k in range(n)]
    power = mp.matrix([[x**j for j in range(n)] for x in nodes])
    c = mp.lu_solve(power, mp.matrix([f(x) for x in nodes]))
    grid = [middle + half * mpf(k) / 500 for k in range(-500, 501) if k]
    worst = max(abs(mp.polyval(list(c)[::-1], x) / f(x) - 1) for x in grid)
    print(f"// {name}: {mp.nstr(worst, 2)}")
    print(", ".join(f"{float(x):.9g}f" if single else f"{float(x):.17g}" for x in list(c)[::-1]))


def log1p_shifted(v: mpf) -> mpf:
    return mp.log1p(v + 0.5) / (v + 0.5) if v != -0.5 else mpf(1)


def atanh_square(y: mpf) -> mpf:
    """(log1p(q) - 2 w) / (2 w^3) with w = q / (2 + q), y = w^2."""
    w = mp.sqrt(y)
    return (mp.atanh(w) / w - 1) / y if y > mpf("1e-20") else mpf(1) / 3


def exp_rest(r: mpf) -> mpf:
    """(exp(r) - 1 - r) / r^2: with 1 and r themselves exact, exp(0) is 1."""
    return (mp.expm1(r) - r) / r**2 if abs(r) > mpf("1e-20") else mpf(1) / 2


if __name__ == "__main__":
    ln2 = mp.log(2)
    for degree in (3, 4):
        show(f"exp, float32, {degree}", exp_rest, -ln2 / 2, ln2 / 2, degree, True)
    for degree in (8, 9, 10):
        show(f"exp, float64, {degree}", exp_rest, -ln2 / 2, ln2 / 2, degree, False)
    for degree in (8, 9, 10):
        show(f"log1p(q)/q in q - 1/2, float32, {degree}", log1p_shifted, mpf(-0.5), mpf(0.5), degree, True)
    for degree in (8, 9, 10):
        show(f"atanh, float64, {degree}", atanh_square, mpf(0), mpf(1) / 9, degree, False)
    print(mp.nstr(1 / ln2, 20), mp.nstr(ln2, 30))
