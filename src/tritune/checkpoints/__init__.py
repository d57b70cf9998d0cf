"""What lies on disk: `prepare` and `convert`, packed layers, packing, checksums, the plug-in of transformers, loading.

Begin with `plugin.py`, which `from_pretrained` and `save_pretrained` go through, or with `packing.py` for the bytes.
"""
