"""Made-up scenes and the tour through the package on them."""
