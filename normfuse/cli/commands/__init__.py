"""One file per command: its options, and what it prints. Nothing heavy is imported before it runs."""
