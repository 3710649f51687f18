"""DEER beside the sequential loop: time by length and size."""
