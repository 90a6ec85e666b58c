"""Measuring generated videos: metric maths, comparisons over seeds, and the report page."""
