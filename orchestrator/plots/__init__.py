"""One plot a file; a plot reads finished tables and never computes."""
