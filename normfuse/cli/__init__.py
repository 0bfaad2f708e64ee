"""The command line: ``normfuse demo``."""
