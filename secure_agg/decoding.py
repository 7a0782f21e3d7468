"""Finds the polynomial behind shares of which some are wrong (Berlekamp and Welch 1986).

With m shares of a polynomial of degree below s, up to (m - s) / 2 wrong ones are found by solving one linear system,
whichever they are. Knows nothing of secrets and commitments: its caller checks what comes out.
"""

from __future__ import annotations

from collections.abc import Mapping

Polynomial = list[int]
"""Coefficients, the constant first."""


def decode(points: Mapping[int, int], size: int, field: int) -> Polynomial | None:
    """Return the polynomial of fewer than ``size`` coefficients through all points but the few wrong ones.

    With e wrong points at most, the polynomials E (monic, of degree e, zero at every wrong x) and Q = P * E satisfy
    Q(x) = y * E(x) at every point: m equations, linear in the coefficients of both.

    Args:
        points: y by x, elements of the field.
        size: number of coefficients, at least 1.
        field: a prime.

    Returns:
        ``size`` coefficients, or None if more points are wrong than (len(points) - size) // 2.
    """
    errors = (len(points) - size) // 2
    if errors < 1:
        return None
    equations = []
    for x, y in points.items():
        powers = [1]
        for _ in range(size + errors - 1):
            powers.append(powers[-1] * x % field)
        located = [-y * power % field for power in powers[:errors]]
        equations.append([*powers, *located, y * pow(x, errors, field) % field])
    solution = _solve(equations, field)
    if solution is None:
        return None
    product, locator = solution[: size + errors], [*solution[size + errors :], 1]
    quotient, remainder = _divide(product, locator, field)
    return None if any(remainder) else quotient


def _solve(equations: list[list[int]], field: int) -> list[int] | None:
    """Solve a linear system by elimination, unknowns that are free being zero; None if it contradicts itself.

    Args:
        equations: coefficients and, last, the right side of each; changed in place.
        field: a prime.
    """
    unknowns = len(equations[0]) - 1
    pivots: list[int] = []
    for column in range(unknowns):
        done = len(pivots)
        found = next((row for row in range(done, len(equations)) if equations[row][column]), None)
        if found is None:
            continue
        equations[done], equations[found] = equations[found], equations[done]
        inverse = pow(equations[done][column], -1, field)
        pivot = equations[done] = [value * inverse % field for value in equations[done]]
        for row, equation in enumerate(equations):
            factor = equation[column]
            if factor and row != done:
                equations[row] = [
                    (value - factor * other) % field for value, other in zip(equation, pivot, strict=True)
                ]
        pivots.append(column)
    if any(equation[-1] for equation in equations[len(pivots) :]):
        return None
    solution = [0] * unknowns
    for row, column in enumerate(pivots):
        solution[column] = equations[row][-1]
    return solution


def _divide(dividend: Polynomial, divisor: Polynomial, field: int) -> tuple[Polynomial, Polynomial]:
    """Divide by a monic polynomial; return quotient and remainder."""
    rest, degree = list(dividend), len(divisor) - 1
    quotient = [0] * (len(dividend) - degree)
    for position in range(len(quotient) - 1, -1, -1):
        factor = quotient[position] = rest[position + degree]
        for offset, value in enumerate(divisor):
            rest[position + offset] = (rest[position + offset] - factor * value) % field
    return quotient, rest[:degree]
