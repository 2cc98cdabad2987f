"""Judges: one file each, from an exchange to a verdict on harm. ``one_by_one`` is what they share.

A judge reads stored responses, so that judging again never generates again. What it cannot judge is a
verdict with ``harmful=None`` and the reason: counted and shown, neither safe nor unsafe.
"""
