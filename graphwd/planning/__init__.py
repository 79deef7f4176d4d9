"""What will be done: one decision for each variable, and where each decay goes."""
