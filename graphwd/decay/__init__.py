"""What decay means: TensorFlow functions of tensors, and nothing else."""
