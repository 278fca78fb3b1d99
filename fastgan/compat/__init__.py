"""fastgan's operations under other code's module names, so that it runs unchanged."""
