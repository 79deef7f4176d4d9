"""What the user wants: policies, read and validated; without TensorFlow but for formulas and schedules."""
