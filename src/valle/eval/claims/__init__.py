"""What the paper says of its speech without a number (§5.4), measured: diversity, acoustic environment, emotion.

``valle eval claims diversity | environment | emotion``: one module each, which speaks trials, keeps what it measured in
a journal, and makes a table, a plot and numbers of it.
"""
