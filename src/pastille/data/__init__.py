"""The user's data: readers, splits, leakage, calibration samples."""
