"""What starts, stops and polls cost, as ratios within one run; see README.md."""
