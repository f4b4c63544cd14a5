"""What is trained: a task for each kind of network."""
