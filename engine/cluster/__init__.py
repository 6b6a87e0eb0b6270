"""Many machines: runs of a corpus on a Ray cluster, and a class for people's own Ray Data pipelines."""

from mkc_fast.engine.cluster.batches import AnonymizeBatch
from mkc_fast.engine.cluster.connection import RayCluster

__all__ = ["AnonymizeBatch", "RayCluster"]
