"""Statistics of rates, agreement, calibration, drift and pictures: numbers in, numbers out."""
