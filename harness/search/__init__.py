"""The study: what is searched and how. Optuna lives here and nowhere else."""
