"""The inference form of a loaded model: fused projections, and kernels for a few positions."""
