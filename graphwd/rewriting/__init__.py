"""Doing it: copies of bodies are written, and checked."""
