"""The machinery of `evaluate` and `compare`: videos made, measured and kept; metrics, differences, the report."""

from contrastive_i2v.evaluation.suite.measures import LatentEncoder, Networks
from contrastive_i2v.evaluation.suite.run import Known, evaluate

__all__ = ["Known", "LatentEncoder", "Networks", "evaluate"]
