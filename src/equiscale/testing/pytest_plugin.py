"""A fixture for test suites of networks; loaded by pytest, it imports torch only in tests that ask for it."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import Tensor

    from equiscale.scales import ScaleGrid
    from equiscale.testing.diagnosis import NetworkEquivarianceReport
    from equiscale.testing.signals import BandLimitedImage


class EquivarianceAssertion:
    """What the fixture ``assert_equivariant`` gives: call it with a network and a tolerance."""

    def __call__(
        self,
        model: "Callable[[Tensor], Tensor]",
        x: "BandLimitedImage | None" = None,
        factors: Sequence[float] | None = None,
        *,
        tolerance: float,
        size: int | tuple[int, int] | None = None,
        grid: "ScaleGrid | None" = None,
    ) -> "NetworkEquivarianceReport":
        """Fail the test, with every layer's errors and their causes, unless the output is equivariant.

        Args:
            model: The network.
            x: The images; None: random ones, always the same.
            factors: The scale factors; None: powers of the grid's step.
            tolerance: The largest relative error of the output to accept.
            size: The canvas of random images.
            grid: The scales of scale maps.

        Returns:
            The report, for a bound from below.
        """
        __tracebackhide__ = True
        from equiscale.testing.diagnosis import equivariance_report

        report = equivariance_report(model, x, factors, size=size, grid=grid)
        if report.worst is None or not report.worst <= tolerance:
            found = "an output that cannot be compared" if report.worst is None else f"{report.worst:.3g}"
            pytest.fail(
                f"expected relative errors of at most {tolerance:g}, got {found}\n\n{report}", pytrace=False
            )
        return report


@pytest.fixture
def assert_equivariant() -> Any:
    """Assert the scale equivariance of a network: ``assert_equivariant(model, tolerance=0.1, size=96)``.

    A test that fails shows every layer's error and its causes; see `equiscale.testing.equivariance_report`.
    """
    return EquivarianceAssertion()
