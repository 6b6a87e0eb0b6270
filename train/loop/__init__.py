"""What the trainings of networks share: batches by length, several GPUs, a log, and a state that continues exactly."""
