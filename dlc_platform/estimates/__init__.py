"""Poses of sessions: how they are judged, which would be computed otherwise now, and those from elsewhere."""
