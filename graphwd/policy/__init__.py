"""What the user wants: policies, read and validated. Nothing here imports TensorFlow."""
