"""Job scripts for Slurm clusters, and what they need of Python."""
