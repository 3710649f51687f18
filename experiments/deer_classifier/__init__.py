"""A classifier of long recordings, trained with DEER and with the sequential loop."""
