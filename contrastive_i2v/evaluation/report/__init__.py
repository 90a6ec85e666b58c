"""The page that shows what was measured: one self-contained HTML file."""

from contrastive_i2v.evaluation.report.charts import Series
from contrastive_i2v.evaluation.report.page import Chart, HeldOutRow, Method, Report, build_page

__all__ = ["Chart", "HeldOutRow", "Method", "Report", "Series", "build_page"]
