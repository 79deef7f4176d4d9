"""What a step does: where each variable is updated, from what, and by which learning rate."""
