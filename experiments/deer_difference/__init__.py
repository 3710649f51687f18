"""How far DEER and the sequential loop are apart, over time."""
