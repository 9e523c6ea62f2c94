"""Makes a trained model as small and fast as it can be while it still passes the bar its user set."""
