"""How fast it runs on this machine: ``speak`` is ``valle bench``, ``train`` is ``valle bench train``."""
