"""fastgan's operations under the module names of other code, which then runs unchanged."""
