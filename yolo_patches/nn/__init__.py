"""Layers in plain torch: nothing here knows a patch or an upstream."""
