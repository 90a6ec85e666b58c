"""The latent space that videos move in: how predictions cluster around their source, how smooth trajectories are,
and where they lie."""

from contrastive_i2v.evaluation.latent_space.clusters import ClusterMetrics, cluster_metrics
from contrastive_i2v.evaluation.latent_space.maps import latent_maps
from contrastive_i2v.evaluation.latent_space.trajectories import TrajectorySmoothness, trajectory_smoothness

__all__ = ["ClusterMetrics", "TrajectorySmoothness", "cluster_metrics", "latent_maps", "trajectory_smoothness"]
