"""What several packages need and no user asks for: files, devices, random streams."""
