"""The binomial distribution, against SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import bdtr

from pastille.stats.binomial import binomial_cdf


@pytest.mark.parametrize("n", [1, 2, 50, 459, 20_000])
@pytest.mark.parametrize("p", [1e-5, 0.01, 0.05, 0.5, 0.99])
def test_it_agrees_with_scipy(n: int, p: float) -> None:
    expected = bdtr(np.arange(n + 1.0), n, p)
    normal = expected > 1e-290  # below, SciPy's own digits run out
    np.testing.assert_allclose(binomial_cdf(n, p)[normal], expected[normal], rtol=1e-9)


@pytest.mark.parametrize(("n", "p"), [(0, 0.5), (5, 0.0), (5, 1.0), (5, float("nan"))])
def test_what_is_out_of_range_is_refused(n: int, p: float) -> None:
    with pytest.raises(ValueError, match="n must be at least 1 and p in"):
        binomial_cdf(n, p)
