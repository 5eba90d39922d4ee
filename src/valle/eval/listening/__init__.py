"""What people say of the speech: a page that asks, a server that collects, statistics (paper §5.1, SMOS and CMOS).

``build`` makes a folder: ``page/`` is what raters get, and tells nothing of the systems; ``test.json`` is the key, for
``serve`` and ``report`` only. Raters give SMOS (is it the prompt's voice?), MOS (how natural?) and CMOS (which of two
sounds better?); recordings hide among the systems, and some screens come twice.

Departure: SMOS has whole points, 1 to 5, where the paper allows halves, so that one key is one answer.
"""
