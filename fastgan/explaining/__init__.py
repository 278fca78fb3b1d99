"""How layers and ops run, and why: reports, explanations, and the warning about fallbacks."""
