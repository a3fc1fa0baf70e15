"""What a model costs on this machine, beside what a user would run instead."""
