"""A Hamiltonian neural network learns the two-body problem, with DEER and by steps."""
