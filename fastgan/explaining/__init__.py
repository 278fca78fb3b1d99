"""Reports of how layers and ops run, and why, and the warning about fallbacks."""
