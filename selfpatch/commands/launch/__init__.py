"""A run as several processes: started on this machine, joined by a launcher, or sent to SLURM."""
