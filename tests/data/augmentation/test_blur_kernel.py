"""Kernels have the variance that is asked for, one by one and many at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfpatch.data.augmentation.blur_kernel import blur_kernel, blur_kernels


@given(st.floats(0.01, 20))
def test_blur_kernel_has_the_right_variance(sigma):
    kernel = blur_kernel(sigma).astype(float)
    offsets = np.arange(len(kernel)) - len(kernel) // 2
    assert (kernel >= 0).all()
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(kernel, kernel[::-1])
    assert (kernel * offsets**2).sum() == pytest.approx(sigma**2, rel=1e-3)


def test_blur_kernels_of_many():
    sigmas = np.array([0.0, 0.1, 0.9, 1.0, 2.0, 1.3, 5.0])
    many = blur_kernels(sigmas)
    for sigma, row in zip(sigmas, many, strict=True):
        one = blur_kernel(sigma)
        ends = (many.shape[1] - len(one)) // 2
        np.testing.assert_allclose(row, np.pad(one, ends), atol=1e-7)
