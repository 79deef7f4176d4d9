"""Doing it: the one writer of bodies, and the check of what it wrote."""
