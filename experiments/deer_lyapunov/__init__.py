"""Sweeps by the Lyapunov exponent of the recurrence."""
