from packs import make_pack

__all__ = ["make_pack"]
