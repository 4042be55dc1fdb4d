"""Poses of sessions: their estimation, their judgement, the rules that would change them, and imported poses."""
