"""What was kept: metrics of forgetting and calibration, pure functions and MMEngine METRICS around them."""
