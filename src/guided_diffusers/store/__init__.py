"""Files and folders: written whole, read safely, found by name."""
