"""How much of the population of ``transformers`` is recognised: build, capture, judge, write a table."""
