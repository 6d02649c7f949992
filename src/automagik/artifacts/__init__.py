"""Bytes that outlive a host: media, bundles, transcripts; content-addressed, in the data folder or an object store."""

from automagik.artifacts.pruning import Pruned, keep_pruned, prune_platform
from automagik.artifacts.store import Artifact, ArtifactStore, PrunedArtifacts

__all__ = ["Artifact", "ArtifactStore", "Pruned", "PrunedArtifacts", "keep_pruned", "prune_platform"]
