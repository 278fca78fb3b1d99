"""Internal helpers of several packages: files, devices, random streams."""
