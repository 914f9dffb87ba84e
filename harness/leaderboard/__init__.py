"""Ranking: reads records and nothing else."""
