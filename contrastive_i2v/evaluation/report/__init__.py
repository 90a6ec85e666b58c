"""The page that shows what was measured: one self-contained HTML file.

`page/` holds what a browser reads (Jinja templates, style, scripts); the modules prepare what the templates lay out.
"""

from contrastive_i2v.evaluation.report.page import build_page

__all__ = ["build_page"]
